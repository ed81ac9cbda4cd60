"""What a candidate must show before it serves anybody. Pure: evidence in, verdict with reasons out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thumbwheel import config


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
    candidate_length: float
    """Mean tokens of an answer."""
    base_length: float
    finite: bool
    """All log-probabilities and weights are numbers."""
    base_right: frozenset[str]
    """Plain questions that the base answers right."""
    candidate_right: frozenset[str]
    questions: int


@dataclass(frozen=True, slots=True)
class Verdict:
    passed: bool
    reasons: tuple[str, ...]
    """What was wrong; when nothing was, what was found."""
    metrics: dict[str, float]


def win_rate(candidate: NDArray[np.float64], live: NDArray[np.float64]) -> tuple[float, float]:
    """Share of (candidate, live) sample pairs of a prompt that the candidate wins (ties half), and its standard error.

    Args:
        candidate, live: (P, S) scores. The error is over prompts, which are what was drawn.
    """
    wins = (candidate[:, :, None] > live[:, None, :]) + 0.5 * (candidate[:, :, None] == live[:, None, :])
    by_prompt = wins.mean((1, 2))
    error = by_prompt.std(ddof=1) / math.sqrt(len(by_prompt)) if len(by_prompt) > 1 else float("inf")
    return float(by_prompt.mean()), float(error)


def judge(evidence: Evidence, settings: config.Gate) -> Verdict:
    """Every check is made, so that the reasons are complete."""
    against: list[str] = []
    metrics = {
        "kl_nats_per_sequence": evidence.kl,
        "answer_tokens": evidence.candidate_length,
        "heldout_prompts": float(len(evidence.candidate_scores)),
        "judge_votes": evidence.judge_votes,
        "competence": len(evidence.candidate_right) / evidence.questions,
        "competence_base": len(evidence.base_right) / evidence.questions,
    }
    if not evidence.finite:
        against.append("weights or log-probabilities are not finite")
    if evidence.judge_votes < settings.min_judge_votes:
        against.append(
            f"only {evidence.judge_votes:.0f} votes on held-out conversations to judge by, "
            f"{settings.min_judge_votes} are needed"
        )
    if not len(evidence.candidate_scores):
        against.append("no held-out prompts to compare on")
    else:
        rate, error = win_rate(evidence.candidate_scores, evidence.live_scores)
        metrics |= {"win_rate": rate, "win_rate_error": error}
        if not rate > settings.min_win_rate:
            against.append(f"win rate against live {rate:.2f} ± {error:.2f}, more than {settings.min_win_rate} needed")
    lost = len(evidence.base_right - evidence.candidate_right)
    net = (len(evidence.base_right) - len(evidence.candidate_right)) / evidence.questions
    metrics["competence_lost"] = net
    if net > settings.max_competence_loss:
        against.append(
            f"competence: {lost} of {len(evidence.base_right)} plain questions that the base gets right are lost, "
            f"{net:+.1%} of all in balance, {settings.max_competence_loss:.1%} allowed"
        )
    if not evidence.kl <= settings.max_kl:
        against.append(f"KL to the base {evidence.kl:.2f} nats per answer, {settings.max_kl} allowed")
    ratio = evidence.candidate_length / max(evidence.base_length, 1.0)
    metrics["length_ratio"] = ratio
    if not 1 / settings.max_length_ratio <= ratio <= settings.max_length_ratio:
        against.append(f"answers are {ratio:.2f} times as long as the base's, {settings.max_length_ratio} allowed")
    if against:
        return Verdict(False, tuple(against), metrics)
    found = (
        f"win rate {metrics['win_rate']:.2f}, KL {evidence.kl:.2f} nats, competence {-net:+.1%}, length × {ratio:.2f}"
    )
    return Verdict(True, (found,), metrics)
