"""Each reason refuses a candidate that deserves it, and a good one passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.gate import Evidence, judge, win_rate
from thumbwheel import config

RNG = np.random.default_rng(0)
LIVE = RNG.uniform(0.1, 0.6, (24, 2))
RIGHT = frozenset(f"q{i}" for i in range(60))

GOOD = Evidence(
    candidate_scores=LIVE + 0.3,
    live_scores=LIVE,
    judge_votes=24,
    kl=3.0,
    candidate_length=20,
    base_length=40,
    finite=True,
    base_right=RIGHT,
    candidate_right=RIGHT - {"q0", "q1"},
    questions=100,
)


def test_good_candidate_passes_and_says_what_was_found() -> None:
    verdict = judge(GOOD, config.Gate())
    assert verdict.passed
    assert "win rate" in verdict.reasons[0]
    assert verdict.metrics["competence"] == pytest.approx(0.58)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"finite": False}, "not finite"),
        ({"judge_votes": 3.0}, "only 3 votes"),
        ({"candidate_scores": np.zeros((0, 2)), "live_scores": np.zeros((0, 2))}, "no held-out prompts"),
        ({"candidate_scores": LIVE - 0.05}, "win rate"),
        ({"candidate_scores": LIVE[::-1].copy()[::-1]}, "win rate"),
        ({"candidate_right": frozenset(sorted(RIGHT)[:50])}, "competence"),
        ({"kl": 7.0}, "KL"),
        ({"kl": float("nan")}, "KL"),
        ({"candidate_length": 2}, "as long"),
        ({"candidate_length": 200}, "as long"),
    ],
)
def test_each_fault_is_refused_with_its_reason(change: dict[str, object], reason: str) -> None:
    verdict = judge(replace(GOOD, **change), config.Gate())
    assert not verdict.passed
    assert any(reason in found for found in verdict.reasons), verdict.reasons


def test_all_reasons_are_given() -> None:
    verdict = judge(replace(GOOD, finite=False, kl=9.0, candidate_length=1), config.Gate())
    assert len(verdict.reasons) == 3


def test_win_rate_by_hand() -> None:
    # Prompt 1: (.9 > .5, .9 > .7, .6 > .5, .6 < .7) = 3/4. Prompt 2: two ties, two losses = 1/4.
    rate, error = win_rate(np.array([[0.9, 0.6], [0.5, 0.4]]), np.array([[0.5, 0.7], [0.5, 0.5]]))
    assert rate == pytest.approx((0.75 + 0.25) / 2)
    assert error == pytest.approx(np.std([0.75, 0.25], ddof=1) / np.sqrt(2))
