"""How answers are given, whatever they say: at what length, how often the same, how often not at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from learner.rollouts import Sampled
from learner.safety import refuses

GRAM = 3
"""Tokens in a row that are the same again make a repetition."""


@dataclass(frozen=True, slots=True)
class Manner:
    """Of a version's answers to the same prompts as another's."""

    length: float
    """Mean tokens of an answer."""
    repetition: float
    """Mean share of an answer's runs of GRAM tokens that it has had before."""
    distinct: float
    """Share of the prompts whose first answer is given to no prompt before them; 1 where there are none."""
    refusals: float
    """Share of answers that decline to answer."""

    @classmethod
    def of(cls, answers: Sequence[Sampled], samples: int) -> Manner:
        """
        Args:
            answers: by prompt, `samples` of each.
            samples: see there.
        """
        if not answers:
            return cls(0.0, 0.0, 1.0, 0.0)
        firsts = [answer.token_ids for answer in answers[::samples]]
        return cls(
            length=float(np.mean([len(answer.token_ids) for answer in answers])),
            repetition=float(np.mean([repetition(answer.token_ids) for answer in answers])),
            distinct=len(set(firsts)) / len(firsts),
            refusals=float(np.mean([refuses(answer.text) for answer in answers])),
        )


def repetition(tokens: Sequence[int]) -> float:
    """Share of the runs of GRAM tokens that were there before."""
    runs = [tuple(tokens[start : start + GRAM]) for start in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
