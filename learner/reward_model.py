"""A scalar head on frozen features, fitted to every kind of vote at once.

Unpaired votes (thumbs, stars) by logistic regression, pairs (rankings, edits) by Bradley–Terry (1952), in one convex
loss with an L2 penalty chosen by cross-validation. Probabilities are calibrated by Platt scaling (1999) on
out-of-fold scores. Everything that is reported was measured on conversations that the fit had not seen; one AUC on
votes that came later, too.

The models of the cross-validation are kept: each has seen all folds but one, so that how far they differ tells how far
the fit would differ with other conversations (the jackknife over groups). Where they differ the policy is paid less, as
it would else learn to say what nobody has judged (Coste et al. 2023, arXiv:2310.02743).

Legend: N answers, D features (the last FORM of them the answer's form), x (N, D) standardised features, z (N,) scores
(logits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from learner.dataset import Dataset, fold
from thumbwheel import config

Floats = NDArray[np.float64]
Features = NDArray[np.floating[Any]]
PENALTIES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FORM = 2
"""The last features describe the answer's form (length, ending), not its content; see Policy.features."""
FORM_SCALE = 4.0
"""How much more the prior lets form weigh than one of hundreds of content features.

Chosen on one set of 128 answers, six draws of 10 % flipped thumbs, cross-validated AUC against the truth at 1 / 4 / 17:
brief .81/.93/.92, impersonal .82/.81/.80, unbroken .79/.83/.84."""


LATER = 0.2
LEAST_LATER = 10
OUTLOOK_PRIOR = 8.0
"""In tokens. On 288 answers, at 2 / 8 / 16 / 24, the outlook and a fit on the states explained of the final reward's
variance, out of fold: brief .60/.68/.66/.63, impersonal .67/.74/.73/.70, unbroken .57/.64/.64/.62."""


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Scores features; `probability` is the chance that a rater likes the answer."""

    mean: Floats  # (D,)
    std: Floats  # (D,)
    weight: Floats  # (D,)
    bias: float
    slope: float = 1.0
    offset: float = 0.0
    members: Mapping[int, RewardModel] = field(default_factory=dict)
    """By fold: fitted without it."""

    def score(self, features: Features) -> Floats:
        """(N, D) -> (N,) uncalibrated logits."""
        scores: Floats = (features - self.mean) / self.std @ self.weight + self.bias
        return scores

    def logit(self, features: Features) -> Floats:
        """(N, D) -> (N,) calibrated."""
        return self.slope * self.score(features) + self.offset

    def logit_unseen(self, features: Features, folds: NDArray[np.int64]) -> Floats:
        """(N, D), (N,) -> (N,) the same of the members: each answer's by the one that saw none of its fold."""
        scores = np.zeros(len(features))
        for number, member in self.members.items():
            scores[folds == number] = member.score(features[folds == number])
        return self.slope * scores + self.offset

    def probability(self, features: Features, lift: Floats | float = 0.0) -> Floats:
        """(N, D) -> (N,) calibrated probabilities.

        Args:
            lift: (N,) what is known beside the features, in logits (see reward_lora.py).
        """
        calibrated: Floats = expit(self.logit(features) + lift)
        return calibrated

    def doubt(self, features: Features) -> Floats:
        """(N, D) -> (N,) standard errors of the calibrated logits, by the jackknife; 0 where nothing was left out."""
        members = len(self.members)
        if members < 2:
            return np.zeros(len(features))
        logits = self.slope * np.stack([member.score(features) for member in self.members.values()])  # (K, N)
        error: Floats = np.sqrt((members - 1) * logits.var(0))
        return error

    def cautious(self, features: Features, caution: float, lift: Floats | float = 0.0) -> Floats:
        """(N, D) -> (N,) probabilities, `caution` standard errors below the likeliest; `lift` as in `probability`."""
        lowered: Floats = expit(self.logit(features) + lift - caution * self.doubt(features))
        return lowered

    def evidence(self, tokens: Features) -> Floats:
        """(A, D - FORM) features of an answer's tokens -> (A,) what each says; their mean is in the answer's score."""
        said: Floats = (tokens - self.mean[:-FORM]) / self.std[:-FORM] @ self.weight[:-FORM]
        return said

    def outlook(self, tokens: Features) -> Floats:
        """(A, D - FORM) features of an answer's tokens -> (A,) the chance that it will be liked, before each token.

        An answer is scored by means over its tokens; those to come are taken for average, as OUTLOOK_PRIOR of them.
        """
        before = np.append(0.0, np.cumsum(self.evidence(tokens))[:-1]) / (np.arange(len(tokens)) + OUTLOOK_PRIOR)
        chance: Floats = expit(self.slope * (before + self.bias) + self.offset)
        return chance


@dataclass(frozen=True, slots=True)
class Quality:
    """What the reward model is worth on conversations it was not fitted on."""

    auc: float
    auc_later: float
    """Of a model of the earlier votes on the later ones, which are on other conversations; NaN if these are too few."""
    ece: float
    agreement: float
    """Share of held-out pairs in the raters' order; NaN without pairs."""
    up_rate: float
    votes: float
    bins: tuple[tuple[float, float, float], ...] = ()
    """Predicted and observed share of up-votes, and the votes' weight, by `calibration`."""

    @property
    def floor_value(self) -> float:
        """What is held against the floor: the AUC, or the agreement where votes are all pairs."""
        return self.agreement if np.isnan(self.auc) else self.auc


@dataclass(frozen=True, slots=True)
class Targets:
    """A data set's votes as arrays. Labels: rows, values, weights (L,); pairs: better, worse, weights (P,)."""

    rows: NDArray[np.int64]
    values: Floats
    weights: Floats
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    pair_weights: Floats

    @classmethod
    def of(cls, data: Dataset) -> Targets:
        return cls(
            np.array([label.answer for label in data.labels], dtype=np.int64),
            np.array([label.value for label in data.labels], dtype=np.float64),
            np.array([data.weight(label.rater) for label in data.labels], dtype=np.float64),
            np.array([pair.better for pair in data.pairs], dtype=np.int64),
            np.array([pair.worse for pair in data.pairs], dtype=np.int64),
            np.array([data.weight(pair.rater) * pair.share for pair in data.pairs], dtype=np.float64),
        )

    def on(self, keep: NDArray[np.bool_]) -> Targets:
        """The votes on the answers in `keep` (N,)."""
        labels, pairs = keep[self.rows], keep[self.better]
        return Targets(
            self.rows[labels], self.values[labels], self.weights[labels],
            self.better[pairs], self.worse[pairs], self.pair_weights[pairs],
        )  # fmt: skip

    def losses(self, logits: Floats) -> Floats:
        """(N,) -> (L + P,) weighted log loss of each vote, nats."""
        zl, zp = logits[self.rows], logits[self.better] - logits[self.worse]
        said = self.values * log_expit(zl) + (1 - self.values) * log_expit(-zl)
        return np.concatenate([-self.weights * said, -self.pair_weights * log_expit(zp)])


def fit(data: Dataset, features: Features, settings: config.RewardModel) -> tuple[RewardModel, Quality]:
    """Fits and measures.

    Args:
        data: votes; `features[i]` belongs to `data.answers[i]`.
        features: (N, D).

    Raises:
        ValueError: there are no votes in `data`.
    """
    if not data.votes:
        raise ValueError("no votes to fit a reward model on")
    targets = Targets.of(data)
    folds = folds_of(data, settings.folds)
    tried = [(penalty, *_out_of_fold(features, targets, folds, penalty)) for penalty in PENALTIES]
    penalty, held_out, members = min(tried, key=lambda one: targets.losses(one[1]).sum())
    slope, offset = _platt(held_out, targets)
    model = replace(_fit(features, targets, penalty), slope=slope, offset=offset, members=members)
    return model, _quality(held_out, slope, offset, targets, _auc_later(data, features, penalty))


def _auc_later(data: Dataset, features: Features, penalty: float) -> float:
    """AUC on the last LATER of the thumbs and stars, of a head that was fitted on what was said before, elsewhere."""
    if not data.labels:
        return float("nan")
    since = np.quantile([label.at for label in data.labels], 1 - LATER)
    later = [label for label in data.labels if label.at > since]
    if len(later) < LEAST_LATER:
        return float("nan")
    new = {data.answers[label.answer].conversation for label in later}
    rest = data.part(lambda answer: answer.conversation not in new)
    # A pair does not say when; its conversation does.
    earlier = replace(rest, labels=[label for label in rest.labels if label.at <= since])
    if not earlier.votes:
        return float("nan")
    targets = Targets.of(replace(data, labels=later, pairs=[]))
    scores = fit_head(earlier, features, penalty).score(features[targets.rows])
    return auc(scores, targets.values > 0.5, targets.weights)


def folds_of(data: Dataset, folds: int) -> NDArray[np.int64]:
    """(N,) the fold of each answer."""
    return np.array([fold(answer.conversation, folds) for answer in data.answers], dtype=np.int64)


def fit_head(data: Dataset, features: Features, penalty: float) -> RewardModel:
    """The head alone, at a given penalty and as yet uncalibrated. `data` must have votes."""
    return _fit(features, Targets.of(data), penalty)


def _fit(features: Features, targets: Targets, penalty: float) -> RewardModel:
    used = np.unique(np.concatenate([targets.rows, targets.better, targets.worse]))
    mean, std = features[used].mean(0), features[used].std(0) + 1e-6
    std[-FORM:] /= FORM_SCALE
    x = (features - mean) / std
    xl, xp = x[targets.rows], x[targets.better] - x[targets.worse]  # (L, D), (P, D)
    total = targets.weights.sum() + targets.pair_weights.sum()

    def objective(theta: Floats) -> tuple[float, Floats]:
        weight, bias = theta[:-1], theta[-1]
        zl, zp = xl @ weight + bias, xp @ weight
        loss = -targets.weights @ (targets.values * log_expit(zl) + (1 - targets.values) * log_expit(-zl))
        loss -= targets.pair_weights @ log_expit(zp)
        gl = targets.weights * (expit(zl) - targets.values)
        gp = -targets.pair_weights * expit(-zp)
        gradient = np.append(xl.T @ gl + xp.T @ gp, gl.sum()) / total
        gradient[:-1] += penalty * weight
        return float(loss / total + penalty / 2 * weight @ weight), gradient

    theta = minimize(objective, np.zeros(features.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return RewardModel(mean, std, theta[:-1], float(theta[-1]))


def _out_of_fold(
    features: Features, targets: Targets, folds: NDArray[np.int64], penalty: float
) -> tuple[Floats, dict[int, RewardModel]]:
    """(N,) scores, each by a model that saw no answer of that conversation's fold; and these models."""
    scores, members = np.zeros(len(features)), {}
    for number in np.unique(folds):
        inside = folds == number
        rest = targets.on(~inside)
        if len(rest.rows) + len(rest.better):
            members[int(number)] = _fit(features, rest, penalty)
            scores[inside] = members[int(number)].score(features[inside])
    return scores, members


def _platt(scores: Floats, targets: Targets) -> tuple[float, float]:
    """Slope and offset that make expit(slope z + offset) a probability; Platt's smoothed targets."""
    if len(np.unique(targets.values > 0.5)) < 2:
        return 1.0, 0.0
    z, y, w = scores[targets.rows], targets.values, targets.weights
    ups, downs = w @ y, w @ (1 - y)
    smooth = y * (ups + 1) / (ups + 2) + (1 - y) / (downs + 2)

    def objective(theta: Floats) -> tuple[float, Floats]:
        t = theta[0] * z + theta[1]
        g = w * (expit(t) - smooth)
        loss = -w @ (smooth * log_expit(t) + (1 - smooth) * log_expit(-t))
        return float(loss), np.array([g @ z, g.sum()])

    # A negative slope would turn the order around: a model that bad is caught by the floor, not mended here.
    slope, offset = minimize(
        objective, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0.05, 5.0), (-5.0, 5.0)]
    ).x
    return float(slope), float(offset)


def _quality(scores: Floats, slope: float, offset: float, targets: Targets, auc_later: float) -> Quality:
    z = scores[targets.rows]
    pairs = scores[targets.better] - scores[targets.worse]
    probabilities = expit(slope * z + offset)
    return Quality(
        auc=auc(z, targets.values > 0.5, targets.weights),
        auc_later=auc_later,
        ece=ece(probabilities, targets.values, targets.weights),
        agreement=_mean(pairs > 0, targets.pair_weights),
        up_rate=_mean(targets.values, targets.weights),
        votes=float(targets.weights.sum() + targets.pair_weights.sum()),
        bins=calibration(probabilities, targets.values, targets.weights),
    )


def _mean(values: NDArray[Any], weights: Floats) -> float:
    """By weight; NaN if nothing weighs."""
    return float(values @ weights / weights.sum()) if weights.sum() else float("nan")


def auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats | None = None) -> float:
    """Chance that a positive outscores a negative (ties count half), each drawn by its weight (1 if None).

    NaN if one of them is missing.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    levels, level = np.unique(scores, return_inverse=True)
    ups = np.bincount(level, weights * positive, len(levels))
    downs = np.bincount(level, weights * ~positive, len(levels))
    if not ups.sum() or not downs.sum():
        return float("nan")
    below = np.cumsum(downs) - downs
    return float(ups @ (below + downs / 2) / (ups.sum() * downs.sum()))


def calibration(
    probabilities: Floats, values: Floats, weights: Floats | None = None, bins: int = 10
) -> tuple[tuple[float, float, float], ...]:
    """By bin: mean probability, mean vote and weight of its votes (1 each if None).

    As many votes in each, 20 at least where there are so many; those that weigh nothing are in none.
    """
    weights = np.ones(len(values)) if weights is None else weights
    heard = np.flatnonzero(weights)
    if not len(heard):
        return ()
    order = heard[np.argsort(probabilities[heard], kind="stable")]
    return tuple(
        (_mean(probabilities[part], weights[part]), _mean(values[part], weights[part]), float(weights[part].sum()))
        for part in np.array_split(order, max(1, min(bins, len(order) // 20)))
    )


def ece(probabilities: Floats, values: Floats, weights: Floats | None = None, bins: int = 10) -> float:
    """Expected calibration error over the bins of `calibration` (Guo et al. 2017); NaN without votes."""
    found = calibration(probabilities, values, weights, bins)
    if not found:
        return float("nan")
    return sum(abs(p - v) * weight for p, v, weight in found) / sum(weight for _, _, weight in found)
