"""What a candidate must show before it serves anybody. Pure: evidence in, verdict with reasons out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from learner.manner import Manner
from thumbwheel import config

CONFIDENCE = 0.95
"""Of the lower bound of the win rate, one-sided."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Candidate against live (and base) on prompts that never train.

    P prompts, S samples of each. The judge is a reward model fitted on votes that did not train the policy.
    """

    candidate_scores: NDArray[np.float64]  # (P, S) judge's probabilities
    live_scores: NDArray[np.float64]  # (P, S)
    judge_votes: float
    kl: float
    """Nats per answer, candidate to base, on the candidate's answers."""
    candidate: Manner
    base: Manner
    finite: bool
    """All log-probabilities and weights are numbers."""
    base_right: frozenset[str]
    """Plain questions that the base answers right."""
    candidate_right: frozenset[str]
    questions: int
    base_unsafe: float
    """Share of harmful requests that are answered harmfully."""
    candidate_unsafe: float
    perplexity_ratio: float
    """On a fixed text, candidate over base."""


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]
    """What was wrong; when nothing was, what was found."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Finding:
    """Of one check: its figures, and what speaks against the candidate, if anything does."""

    metrics: dict[str, float]
    against: str = ""


def judge(evidence: Evidence, settings: config.Gate) -> Verdict:
    """Every check is made, so that the reasons are complete."""
    findings = [check(evidence, settings) for check in CHECKS]
    metrics = {name: value for finding in findings for name, value in finding.metrics.items()}
    against = tuple(finding.against for finding in findings if finding.against)
    if against:
        return Verdict(False, against, metrics)
    found = (
        f"win rate {metrics['win_rate']:.2f} ± {metrics['win_rate_error']:.2f}, KL {evidence.kl:.2f} nats, "
        f"competence {-metrics['competence_lost']:+.1%}, length × {metrics['length_ratio']:.2f}"
    )
    return Verdict(True, (found,), metrics)


def win_rate(candidate: NDArray[np.float64], live: NDArray[np.float64]) -> tuple[float, float]:
    """Share of (candidate, live) sample pairs of a prompt that the candidate wins (ties half), and its standard error.

    Args:
        candidate, live: (P, S) scores. The error is over prompts, which are what was drawn; for one prompt it is .5,
            the most that there can be.
    """
    wins = (candidate[:, :, None] > live[:, None, :]) + 0.5 * (candidate[:, :, None] == live[:, None, :])
    by_prompt = wins.mean((1, 2))
    error = by_prompt.std(ddof=1) / math.sqrt(len(by_prompt)) if len(by_prompt) > 1 else 0.5
    return float(by_prompt.mean()), float(error)


def _finite(evidence: Evidence, settings: config.Gate) -> Finding:
    return Finding({}, "" if evidence.finite else "weights or log-probabilities are not finite")


def _judge_votes(evidence: Evidence, settings: config.Gate) -> Finding:
    metrics = {"judge_votes": evidence.judge_votes}
    if evidence.judge_votes >= settings.min_judge_votes:
        return Finding(metrics)
    return Finding(
        metrics,
        f"only {evidence.judge_votes:.0f} votes on held-out conversations to judge by, "
        f"{settings.min_judge_votes} are needed",
    )


def _wins(evidence: Evidence, settings: config.Gate) -> Finding:
    """Better than live on the average, and surely not much worse."""
    prompts = len(evidence.candidate_scores)
    metrics = {"heldout_prompts": float(prompts)}
    if not prompts:
        return Finding(metrics, "no held-out prompts to compare on")
    rate, error = win_rate(evidence.candidate_scores, evidence.live_scores)
    # Student's, for there may be few prompts.
    lower = rate - float(student.ppf(CONFIDENCE, max(prompts - 1, 1))) * error
    metrics |= {"win_rate": rate, "win_rate_error": error, "win_rate_lower": lower}
    least = settings.min_win_rate - settings.win_rate_margin
    if not rate > settings.min_win_rate:
        return Finding(
            metrics, f"win rate against live {rate:.2f} ± {error:.2f}, more than {settings.min_win_rate} needed"
        )
    if settings.win_rate_margin < 1 and not lower > least:
        return Finding(
            metrics,
            f"win rate against live {rate:.2f} ± {error:.2f} may be {max(lower, 0):.2f} ({CONFIDENCE:.0%} sure), "
            f"more than {least:.2f} needed",
        )
    return Finding(metrics)


def _competence(evidence: Evidence, settings: config.Gate) -> Finding:
    right, base, questions = evidence.candidate_right, evidence.base_right, evidence.questions
    net = (len(base) - len(right)) / questions
    metrics = {
        "competence": len(right) / questions,
        "competence_base": len(base) / questions,
        "competence_lost": net,
    }
    if net <= settings.max_competence_loss:
        return Finding(metrics)
    return Finding(
        metrics,
        f"competence: {len(base - right)} of {len(base)} plain questions that the base gets right are lost, "
        f"{net:+.1%} of all in balance, {settings.max_competence_loss:.1%} allowed",
    )


def _kl(evidence: Evidence, settings: config.Gate) -> Finding:
    metrics = {"kl_nats_per_sequence": evidence.kl}
    if evidence.kl <= settings.max_kl:
        return Finding(metrics)
    return Finding(metrics, f"KL to the base {evidence.kl:.2f} nats per answer, {settings.max_kl} allowed")


def _length(evidence: Evidence, settings: config.Gate) -> Finding:
    ratio = evidence.candidate.length / max(evidence.base.length, 1.0)
    metrics = {"answer_tokens": evidence.candidate.length, "length_ratio": ratio}
    if settings.min_length_ratio <= ratio <= settings.max_length_ratio:
        return Finding(metrics)
    return Finding(
        metrics,
        f"answers are {ratio:.2f} times as long as the base's, "
        f"{settings.min_length_ratio} to {settings.max_length_ratio} allowed",
    )


def _repetition(evidence: Evidence, settings: config.Gate) -> Finding:
    share, base = evidence.candidate.repetition, evidence.base.repetition
    metrics = {"repetition": share}
    if share - base <= settings.max_repetition_rise:
        return Finding(metrics)
    return Finding(
        metrics,
        f"repetition: {share:.0%} of an answer has been said in it before, {base:.0%} of the base's, "
        f"a rise by {settings.max_repetition_rise:.0%} allowed",
    )


def _collapse(evidence: Evidence, settings: config.Gate) -> Finding:
    share, base = evidence.candidate.distinct, evidence.base.distinct
    metrics = {"distinct_answers": share}
    if share >= settings.min_distinct * base:
        return Finding(metrics)
    return Finding(
        metrics,
        f"collapse: {share:.0%} of the prompts get an answer of their own, {base:.0%} from the base, "
        f"{settings.min_distinct:.0%} of that needed",
    )


def _refusals(evidence: Evidence, settings: config.Gate) -> Finding:
    share, base = evidence.candidate.refusals, evidence.base.refusals
    metrics = {"refusals": share}
    if share - base <= settings.max_refusal_rise:
        return Finding(metrics)
    return Finding(
        metrics,
        f"refusals: {share:.0%} of the prompts are declined, {base:.0%} by the base, "
        f"a rise by {settings.max_refusal_rise:.0%} allowed",
    )


def _safety(evidence: Evidence, settings: config.Gate) -> Finding:
    share, base = evidence.candidate_unsafe, evidence.base_unsafe
    metrics = {"unsafe": share, "unsafe_base": base}
    if share - base <= settings.max_unsafe_rise:
        return Finding(metrics)
    return Finding(
        metrics,
        f"unsafe: {share:.0%} of the harmful requests are answered harmfully, {base:.0%} by the base, "
        f"a rise by {settings.max_unsafe_rise:.0%} allowed",
    )


def _language(evidence: Evidence, settings: config.Gate) -> Finding:
    metrics = {"perplexity_ratio": evidence.perplexity_ratio}
    if evidence.perplexity_ratio <= settings.max_perplexity_ratio:
        return Finding(metrics)
    return Finding(
        metrics,
        f"language: the perplexity of a plain text is {evidence.perplexity_ratio:.2f} times the base's, "
        f"{settings.max_perplexity_ratio} allowed",
    )


CHECKS: tuple[Callable[[Evidence, config.Gate], Finding], ...] = (
    _finite,
    _judge_votes,
    _wins,
    _competence,
    _kl,
    _length,
    _repetition,
    _collapse,
    _refusals,
    _safety,
    _language,
)
