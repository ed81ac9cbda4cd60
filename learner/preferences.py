"""What DPO and KTO learn from, taken out of a batch's votes.

rankings, edits ─► pairs ─────┐
thumbs, stars ─┬─► opposite ──┴─► preferences (DPO)
               └─► verdicts (KTO); a rank above or below others is one, too

TRL's losses know no weights, so a vote that weighs less is there less often. The draw is systematic: of shares that
stand side by side and add up to one, such as those of a ranking's pairs, exactly one comes through.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TypeVar

import numpy as np

from learner.dataset import Answer, Dataset

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Preference:
    """Of two answers to a prompt the one that was liked better; token ids, under TRL's names."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer and whether it was liked; token ids, under TRL's names."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    label: bool


def preferences(train: Dataset, fresh: frozenset[str], longest: int, seed: int) -> list[Preference]:
    """Pairs with at least one answer that the batch rated.

    Args:
        train: votes to learn from.
        fresh: keys of the answers that the batch rated.
        longest: tokens above which an answer is left out.
        seed: of the draw by weight.
    """
    said = [(pair.better, pair.worse, pair.share * train.weight(pair.rater)) for pair in train.pairs]
    found: list[tuple[Preference, float]] = []
    for better, worse, weight in (*said, *_opposite(train)):
        chosen, rejected = train.answers[better], train.answers[worse]
        if {chosen.key, rejected.key} & fresh and _fits(chosen, longest) and _fits(rejected, longest):
            found.append((Preference(chosen.prompt_ids, chosen.answer_ids, rejected.answer_ids), weight))
    return _drawn(found, seed)


def verdicts(train: Dataset, fresh: frozenset[str], longest: int, seed: int) -> list[Verdict]:
    """The answers that the batch rated, each with what its raters say of it together. Arguments as in `preferences`."""
    found = []
    for index, (vote, weight) in train.own_votes().items():
        answer = train.answers[index]
        if vote and answer.key in fresh and _fits(answer, longest):
            # Four stars are half as much of a thumb up as five; raters who disagree say little.
            found.append((Verdict(answer.prompt_ids, answer.answer_ids, vote > 0), abs(vote) * weight))
    return _drawn(found, seed)


def _opposite(train: Dataset) -> Iterator[tuple[int, int, float]]:
    """Liked and disliked answers to one prompt, each in at least one pair: better, worse, weight."""
    liked: dict[tuple[int, ...], list[tuple[int, float]]] = defaultdict(list)
    disliked: dict[tuple[int, ...], list[tuple[int, float]]] = defaultdict(list)
    # Those that were ranked are pairs already.
    for index, (vote, weight) in replace(train, pairs=[]).own_votes().items():
        side = liked if vote > 0 else disliked
        side[train.answers[index].prompt_ids].append((index, abs(vote) * weight))
    for prompt in liked.keys() & disliked.keys():
        ups, downs = liked[prompt], disliked[prompt]
        longer = max(len(ups), len(downs))
        for (up, much), (down, little) in zip(islice(cycle(ups), longer), islice(cycle(downs), longer), strict=True):
            yield up, down, much * little


def _fits(answer: Answer, longest: int) -> bool:
    return 0 < len(answer.answer_ids) <= longest


def _drawn(found: Sequence[tuple[T, float]], seed: int) -> list[T]:
    """Each with a chance that is its weight, in [0, 1]."""
    after = float(np.random.default_rng(seed).random()) + np.cumsum([weight for _, weight in found])
    kept, reached = [], math.floor(after[0] - found[0][1]) if found else 0
    for (each, _), level in zip(found, after, strict=True):
        if math.floor(level) > reached:
            kept.append(each)
        reached = math.floor(level)
    return kept
