"""Votes of people with a taste who err now and then, on answers to prompts: drawn so that more votes contain fewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cli.raters import RATERS
from learner.dataset import Label, Pair

GROUP = 3
"""Answers to one prompt that are ranked together."""
SAMPLES = 1 + 2 * GROUP
"""Answers to each prompt: the first is for a thumb, the others are for two rankings."""

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deal:
    """Who sees what."""

    thumbs: Places  # (P * SAMPLES,) every prompt once before any comes again
    groups: Places  # (2 P, GROUP) answers to one prompt, none of them among the first P of `thumbs`

    @classmethod
    def of(cls, places: Places, dice: np.random.Generator) -> Deal:
        """
        Args:
            places: (P, SAMPLES) of the answers to each prompt.
        """
        shuffled = dice.permuted(places, axis=1)
        thumbs = np.concatenate([dice.permutation(shuffled[:, sample]) for sample in range(SAMPLES)])
        groups = np.concatenate([shuffled[:, 1 : 1 + GROUP], shuffled[:, 1 + GROUP :]])
        return cls(thumbs, dice.permutation(groups))


def thumbs(places: Places, liked: NDArray[np.bool_], noise: float, dice: np.random.Generator) -> list[Label]:
    """A thumb on each answer.

    Args:
        liked: (N,) what the taste says of every answer.
        noise: share of thumbs that say the opposite.
    """
    said = _said(liked[places], noise, dice)
    return [
        Label(int(place), float(up), _rater(number), at=number)
        for number, (place, up) in enumerate(zip(places, said, strict=True))
    ]


def rankings(
    groups: Places, liked: NDArray[np.bool_], noise: float, count: int, dice: np.random.Generator
) -> list[Pair]:
    """Up to `count` rankings; whoever likes all answers of a group, or none, sends nothing and sees the next group.

    Args:
        noise: share of answers that are taken for the opposite.
    """
    pairs: list[Pair] = []
    sent = 0
    for group, said in zip(groups, _said(liked[groups], noise, dice), strict=True):
        better, worse = group[said], group[~said]
        if sent < count and len(better) and len(worse):
            share = 1 / (len(better) * len(worse))
            pairs += [Pair(int(b), int(w), share, _rater(sent)) for b, w in product(better, worse)]
            sent += 1
    return pairs


def edits(mended: Sequence[tuple[int, int]], noise: float, count: int, dice: np.random.Generator) -> list[Pair]:
    """Up to `count` edits.

    Args:
        mended: places of what somebody wrote, and of the answer that they wrote it for.
        noise: share of edits that make it worse: whoever mends it that way has the opposite taste.
    """
    chosen = [mended[place] for place in dice.permutation(len(mended))[:count]]
    wrong = dice.random(len(chosen)) < noise
    ordered = [
        (worse, better) if flipped else (better, worse) for (better, worse), flipped in zip(chosen, wrong, strict=True)
    ]
    return [Pair(better, worse, 1.0, _rater(number), edit=True) for number, (better, worse) in enumerate(ordered)]


def _said(liked: NDArray[np.bool_], noise: float, dice: np.random.Generator) -> NDArray[np.bool_]:
    return liked ^ (dice.random(liked.shape) < noise)


def _rater(number: int) -> str:
    return f"rater {number % RATERS}"
