"""How much each rater's votes weigh: known × trusted × capped, each from 0 to 1.

    known    a newcomer's weight grows with their votes, up to what is usual here
    trusted  how far a rater agrees with what others' votes predict, in log-odds, against how far raters usually do
    capped   nobody holds more than a share of all weight, however much they vote

Fewer raters than a crowd know each other: all votes weigh 1, for of two who disagree nobody could say who is wrong.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from learner.dataset import Dataset
from learner.reward_model import Features, fit_head
from thumbwheel import config

ENOUGH = 64.0
"""Votes to learn something from: fewer judge nobody, and no cap leaves fewer. One keen person is not to be reduced to
the votes of their guests; the tripwires look at batches that few have cast."""
GROUPS = 5
"""Parts of the raters; each is judged by a model of the other parts' votes."""
ROUNDS = 2
"""The model that judges in the second round is fitted on votes that the first one has weighed."""
PENALTY = 0.3
"""Of the models that judge."""
PRIOR = 6.0
"""Sure votes' worth of usual agreement that every rater begins with."""
LEAST_AGREEMENT = 0.55
"""Where even the usual rater agrees with the others less than this, agreement says nothing of anybody."""
MOST_AGREEMENT = 0.95
"""With a usual agreement beyond this, a single slip would cost too much."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """A data set with its raters' weights, and without edits by people who are not known yet."""

    data: Dataset
    trust: Mapping[str, float]
    quarantined: int
    """Edits that were left out."""

    @property
    def distrusted(self) -> list[str]:
        return sorted(rater for rater, trust in self.trust.items() if trust < 0.5)


def weigh(data: Dataset, features: Features, settings: config.Raters) -> Weighed:
    """
    Args:
        data: all votes, the held-out ones among them: how loud somebody is depends on no single vote.
        features: (N, D), row i for data.answers[i].
    """
    votes = _votes(data)
    trust = dict.fromkeys(votes, 1.0)
    if len(votes) < settings.crowd:
        return Weighed(data, trust, 0)
    for _ in range(ROUNDS):
        trust = _trust(replace(data, weights=weights(votes, trust, settings)), features)
    believed = {rater: count * trust[rater] for rater, count in _votes(data, edits=False).items()}
    needed = _known_after(believed, settings)
    before = len(data.pairs)
    kept = [pair for pair in data.pairs if not pair.edit or believed.get(pair.rater, 0.0) >= needed]
    data = replace(data, pairs=kept, weights={})
    return Weighed(replace(data, weights=weights(_votes(data), trust, settings)), trust, before - len(kept))


def weights(votes: Mapping[str, float], trust: Mapping[str, float], settings: config.Raters) -> dict[str, float]:
    """Weight of one vote of each rater, 0 to 1.

    Args:
        votes: how many each has cast, at least one of somebody.
        trust: of each of them, 0 to 1.
    """
    needed = _known_after(votes, settings)
    mass = _capped({rater: count * min(1.0, count / needed) for rater, count in votes.items()}, settings.max_share)
    # Once before, for else somebody loud would have to be trusted very little before it made any difference.
    mass = _capped({rater: each * trust[rater] for rater, each in mass.items()}, settings.max_share)
    return {rater: mass[rater] / count for rater, count in votes.items()}


def _capped(mass: Mapping[str, float], share: float) -> dict[str, float]:
    heard = np.array([each for each in mass.values() if each] or [0.0])
    most = max(_most(heard, share), _enough(heard))
    return {rater: min(each, most) for rater, each in mass.items()}


def _votes(data: Dataset, *, edits: bool = True) -> dict[str, float]:
    """How many each rater has cast; a ranking is one."""
    votes: dict[str, float] = defaultdict(float)
    for label in data.labels:
        votes[label.rater] += 1
    for pair in data.pairs:
        if edits or not pair.edit:
            votes[pair.rater] += pair.share
    return dict(votes)


def _known_after(votes: Mapping[str, float], settings: config.Raters) -> float:
    """Votes that make somebody known: half of what is usual will do, so that where all are new nobody is.

    Usual is what raters have cast from whom half of the votes come: many accounts with a vote each do not make that
    usual.
    """
    counts = np.sort(list(votes.values()))
    total = np.cumsum(counts)
    usual = counts[np.searchsorted(total, total[-1] / 2)] if len(counts) else 0.0
    return min(float(settings.known_after), float(usual) / 2)


def _most(mass: NDArray[np.float64], share: float) -> float:
    """The mass at which raters are cut off, so that none holds more than `share` of what is then left.

    Where there are too few for that, all would have to hold what the least of them holds; then it is what half of them
    hold. (R,) -> the largest m with m = share * sum(min(mass, m)), or the median.
    """
    loudest = np.sort(mass)[::-1]
    rest = loudest.sum() - np.append(0.0, np.cumsum(loudest))  # (R + 1,) without the k loudest
    for cut, quieter in enumerate(loudest):
        if share * cut >= 1:
            break
        level = share * rest[cut] / (1 - share * cut)
        if level >= quieter:
            return float(max(level, np.median(mass)))
    return float(np.median(mass))


def _enough(mass: NDArray[np.float64]) -> float:
    """(R,) -> the least m with sum(min(mass, m)) = ENOUGH; the largest mass if all together are less."""
    missing, quietest = ENOUGH, np.sort(mass)
    for place, each in enumerate(quietest):
        level = missing / (len(quietest) - place)
        if level <= each:
            return float(level)
        missing -= each
    return float(quietest[-1])


def _trust(data: Dataset, features: Features) -> dict[str, float]:
    """Of each rater, 0 (a quarter of the usual agreement in log-odds, or less) to 1 (three quarters, or more).

    Between these it is a matter of luck where somebody stands.
    """
    raters = sorted(data.raters)
    group = {rater: place % GROUPS for place, rater in enumerate(raters)}
    right, sure = dict.fromkeys(raters, 0.0), dict.fromkeys(raters, 0.0)
    for number in range(GROUPS):
        others = replace(
            data,
            labels=[label for label in data.labels if group[label.rater] != number],
            pairs=[pair for pair in data.pairs if group[pair.rater] != number],
        )
        if others.votes < ENOUGH:
            continue
        model = fit_head(others, features, PENALTY)
        # From the middle: people differ in how often they are pleased, and are to agree on what with.
        scores = model.score(features) - model.bias
        said = [(label.rater, scores[label.answer], 2 * label.value - 1) for label in data.labels]
        said += [(pair.rater, scores[pair.better] - scores[pair.worse], pair.share) for pair in data.pairs]
        for rater, score, vote in said:
            if group[rater] == number:
                agreement = vote * (2 * expit(score) - 1)
                sure[rater] += abs(agreement)
                right[rater] += max(agreement, 0.0)
    total = sum(data.weight(rater) * sure[rater] for rater in raters)
    usual = sum(data.weight(rater) * right[rater] for rater in raters) / total if total else 0.0
    if usual < LEAST_AGREEMENT:
        return dict.fromkeys(raters, 1.0)
    usual = min(usual, MOST_AGREEMENT)
    # The posterior mean of a Beta distribution, as a vote's weight in a weighted majority: Nitzan and Paroush 1982.
    odds = {rater: logit((right[rater] + PRIOR * usual) / (sure[rater] + PRIOR)) for rater in raters}
    return {rater: float(np.clip(2 * odds[rater] / logit(usual) - 0.5, 0.0, 1.0)) for rater in raters}
