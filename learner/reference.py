"""A fixed text, on which a candidate shows that it has not forgotten the language.

Fluency goes before anything that a reward model sees: one that has learned to please it with a few words can still win
against live. A text that no version was trained on, and that never changes, tells; so its wording is not to be touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

import torch

from learner.dataset import EncodeAnswer
from learner.policy import Answer, Batch, Policy

WINDOW = 128
"""Tokens that are predicted from those before them, and from none of an earlier window."""


@cache
def text() -> str:
    return files("learner").joinpath("reference.txt").read_text(encoding="utf-8")


def windows(encode: EncodeAnswer) -> list[Answer]:
    """The text in pieces, each as its first token and those that are to be predicted."""
    tokens = tuple(encode(text()))
    pieces = (tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW))
    return [(piece[:1], piece[1:]) for piece in pieces if len(piece) > 1]


@torch.no_grad()
def perplexity_ratio(policy: Policy, pieces: Sequence[Answer]) -> float:
    """Perplexity of the policy as it is over that of the base; 1 for a policy that is the base."""
    nats = tokens = 0.0
    for piece in pieces:
        batch = Batch.of([piece], policy.device)
        hidden = policy.lower(batch)
        ours, base = (
            policy.answer_logps(policy.upper(hidden, batch, reference=off), batch)[0] for off in (False, True)
        )
        nats += float((base - ours).sum())
        tokens += float(batch.mask.sum())
    return math.exp(nats / tokens) if nats < 700 * tokens else math.inf
