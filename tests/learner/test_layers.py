"""The head without the logits, against autograd through the logits."""

from __future__ import annotations

import pytest
import torch

from learner import ppo_math
from learner.layers import TokenLogp


@pytest.mark.parametrize("entropy_grad", [False, True])
def test_token_logp_is_log_softmax_with_its_gradient(entropy_grad: bool) -> None:
    """600 tokens: more than two chunks, the last one short."""
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(600, 8, generator=generator, requires_grad=True)
    head, ids = torch.randn(50, 8, generator=generator), torch.randint(0, 50, (600,), generator=generator)
    along, across = (torch.randn(600, generator=generator) for _ in range(2))
    logp, entropy = TokenLogp.apply(h, head, ids, entropy_grad)  # type: ignore[no-untyped-call]
    logits = h @ head.T
    torch.testing.assert_close(logp, ppo_math.log_prob(logits, ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, ppo_math.entropy(logits), atol=1e-5, rtol=1e-5)
    assert entropy.requires_grad == entropy_grad

    mine, slow = (logp * along).sum(), (ppo_math.log_prob(logits, ids) * along).sum()
    if entropy_grad:
        mine, slow = mine + (entropy * across).sum(), slow + (ppo_math.entropy(logits) * across).sum()
    (gradient,), (expected,) = torch.autograd.grad(mine, h), torch.autograd.grad(slow, h)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=1e-4)
