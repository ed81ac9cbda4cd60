"""The head without the logits, against autograd through the logits."""

from __future__ import annotations

import pytest
import torch

from learner import ppo_math
from learner.layers import TokenLogp


@pytest.mark.parametrize("entropy_grad", [False, True])
@pytest.mark.parametrize("with_reference", [False, True])
def test_token_logp_is_log_softmax_with_its_gradient(entropy_grad: bool, with_reference: bool) -> None:
    """600 tokens: more than two chunks, the last one short."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 8, generator=generator, requires_grad=True)
    reference = torch.randn(600, 8, generator=generator) if with_reference else None
    head, ids = torch.randn(50, 8, generator=generator), torch.randint(0, 50, (600,), generator=generator)
    weights = [torch.randn(600, generator=generator) for _ in range(3)]
    mine = TokenLogp.apply(h, reference, head, ids, entropy_grad)  # type: ignore[no-untyped-call]
    logits = h @ head.T
    logps = torch.log_softmax(logits, -1)
    kl = torch.zeros(600)
    if reference is not None:
        kl = (logps.exp() * (logps - torch.log_softmax(reference @ head.T, -1))).sum(-1)
    slow = ppo_math.log_prob(logits, ids), ppo_math.entropy(logits), kl
    for one, other in zip(mine, slow, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)
    learns = [True, entropy_grad, with_reference]
    assert [one.requires_grad for one in mine] == learns

    (gradient,), (expected,) = (
        torch.autograd.grad(sum((x * w).sum() for x, w, on in zip(xs, weights, learns, strict=True) if on), h)
        for xs in (mine, slow)
    )
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
