"""Top-p on a CPU, mended.

vLLM 0.32 sorts the vocabulary of every answer in a batch once any of them asks for top-p: 4 ms each for 49,152 tokens,
in every step. One such request makes everybody's tokens late.

Here only the answers that ask pay, and a tenth of that: their tokens are counted into narrow buckets of probability;
only that in which the mass is reached is sorted. Bound to the same versions as ``engine_cpu_lora``.
"""

from __future__ import annotations

import torch
from vllm.v1.sample.ops import topk_topp_sampler

BUCKETS = 4096
PER_NAT = 32
"""Buckets for a factor of e in probability. The last bucket holds all that is e^128 times less likely than the best."""


def apply_top_p(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Leaves each answer the fewest most likely tokens whose probabilities reach p, and at least one; the others become
    -inf, in place.

    Args:
        logits: (answers, vocabulary), float32.
        p: (answers,), above 0; 1 means all tokens.
    """
    for answer in (p < 1).nonzero().flatten().tolist():
        row, enough = logits[answer], p[answer]
        probs = row.softmax(-1)
        last = BUCKETS - 1
        # What is not a number must not end the engine here, under the other answers.
        bucket = ((row.max() - row) * PER_NAT).nan_to_num_(nan=last).clamp_(max=last).int()
        mass = torch.bincount(bucket, probs, minlength=BUCKETS).cumsum(0)
        edge = int((mass < enough).sum())
        inside = (bucket == edge).nonzero().flatten()
        ordered = probs[inside].sort(descending=True)
        before = ordered.values.cumsum(0) - ordered.values + (mass[edge - 1] if edge else 0.0)
        outside = bucket > edge
        outside[inside[ordered.indices[before >= enough]]] = True
        row.masked_fill_(outside, -torch.inf)
    return logits


def mend() -> None:
    """Makes this process' sampler use the function above."""
    stock = topk_topp_sampler.apply_top_k_top_p

    def apply(logits: torch.Tensor, k: torch.Tensor | None, p: torch.Tensor | None) -> torch.Tensor:
        return apply_top_p(logits, p) if k is None and p is not None else stock(logits, k, p)

    topk_topp_sampler.apply_top_k_top_p = apply
