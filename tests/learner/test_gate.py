"""Each reason refuses a candidate that deserves it, and a good one passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from learner.gate import Evidence, judge, win_rate
from learner.manner import Manner, repetition
from learner.rollouts import Sampled
from learner.safety import probes, refuses
from thumbwheel import config

RNG = np.random.default_rng(0)
LIVE = RNG.uniform(0.1, 0.6, (24, 2))
RIGHT = frozenset(f"q{i}" for i in range(60))

BASE = Manner(length=40, repetition=0.02, distinct=1.0, refusals=0.05)
BRIEF = Manner(length=20, repetition=0.01, distinct=0.95, refusals=0.05)

GOOD = Evidence(
    candidate_scores=LIVE + 0.3,
    live_scores=LIVE,
    judge_votes=24,
    kl=3.0,
    candidate=BRIEF,
    base=BASE,
    finite=True,
    base_right=RIGHT,
    candidate_right=RIGHT - {"q0", "q1"},
    questions=100,
    base_unsafe=0.2,
    candidate_unsafe=0.25,
    perplexity_ratio=1.05,
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
        ({"candidate": replace(BRIEF, length=2)}, "0.05 times as long"),
        ({"candidate": replace(BRIEF, length=80)}, "2.00 times as long"),
        ({"candidate": replace(BRIEF, repetition=0.2)}, "repetition"),
        ({"candidate": replace(BRIEF, distinct=0.3)}, "collapse"),
        ({"candidate": replace(BRIEF, refusals=0.3)}, "refusals"),
        ({"candidate_unsafe": 0.35}, "unsafe"),
        ({"perplexity_ratio": 1.3}, "language"),
        ({"perplexity_ratio": float("nan")}, "language"),
    ],
)
def test_each_fault_is_refused_with_its_reason(change: dict[str, object], reason: str) -> None:
    verdict = judge(replace(GOOD, **change), config.Gate())
    assert not verdict.passed
    assert any(reason in found for found in verdict.reasons), verdict.reasons


def test_all_reasons_are_given() -> None:
    verdict = judge(replace(GOOD, finite=False, kl=9.0, candidate=replace(BRIEF, length=1)), config.Gate())
    assert len(verdict.reasons) == 3


def test_win_rate_by_hand() -> None:
    # Prompt 1: (.9 > .5, .9 > .7, .6 > .5, .6 < .7) = 3/4. Prompt 2: two ties, two losses = 1/4.
    rate, error = win_rate(np.array([[0.9, 0.6], [0.5, 0.4]]), np.array([[0.5, 0.7], [0.5, 0.5]]))
    assert rate == pytest.approx((0.75 + 0.25) / 2)
    assert error == pytest.approx(np.std([0.75, 0.25], ddof=1) / np.sqrt(2))


def test_a_win_rate_of_few_prompts_proves_nothing() -> None:
    """Three prompts of four are won, and that one of six would be is not ruled out with 95 % confidence."""
    won = np.array([[0.9], [0.9], [0.9], [0.1]])
    verdict = judge(replace(GOOD, candidate_scores=won, live_scores=np.full((4, 1), 0.5)), config.Gate())
    assert verdict.metrics["win_rate"] == 0.75
    assert any("may be 0.16" in reason for reason in verdict.reasons), verdict.reasons
    many = judge(replace(GOOD, candidate_scores=np.tile(won, (8, 1)), live_scores=np.full((32, 1), 0.5)), config.Gate())
    assert many.passed, many.reasons


def test_one_prompt_is_as_uncertain_as_can_be() -> None:
    assert win_rate(np.array([[0.9]]), np.array([[0.1]])) == (1.0, 0.5)


def said(*texts: str) -> list[Sampled]:
    """Answers of letters, one to each prompt."""
    return [Sampled(place, tuple(text.encode()), (-1.0,) * len(text), text, True) for place, text in enumerate(texts)]


PLAIN = said("The sea is salt.", "Two and two are four.", "Bread, from flour and water.", "No; it was in 1969.")


@pytest.mark.parametrize(
    ("answers", "reasons"),
    [
        (said(*["Oooh."] * 4), ("collapse",)),
        (said(*["That is a great question!"] * 4), ("collapse",)),
        (said(*(f"{n} so so so so so so so so so" for n in range(4))), ("repetition",)),
        (said(*(answer.text * 2 for answer in PLAIN)), ("times as long", "repetition")),
        (said(*(f"I'm sorry, I can't say {n}." for n in range(4))), ("refusals",)),
        (said("a", "b", "c", "d"), ("times as long",)),
    ],
)
def test_answers_that_deserve_it_are_refused(answers: list[Sampled], reasons: tuple[str, ...]) -> None:
    base = Manner.of(PLAIN, 1)
    assert judge(replace(GOOD, candidate=base, base=base), config.Gate()).passed
    verdict = judge(replace(GOOD, candidate=Manner.of(answers, 1), base=base), config.Gate())
    for reason in reasons:
        assert any(reason in found for found in verdict.reasons), verdict.reasons


def test_manner_by_hand() -> None:
    # ab ab ab a: aba, bab, aba, bab, aba; two of the five are new
    assert repetition(b"abababa") == pytest.approx(3 / 5)
    assert repetition(b"ab") == 0
    two_each = said("one", "two", "one", "three")
    assert Manner.of(two_each, 2) == Manner(length=3.5, repetition=0, distinct=0.5, refusals=0)
    assert Manner.of([], 1) == Manner(0, 0, 1, 0)


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help.", "I cannot do that.", "As an AI, I have no taste.", "Sorry, no."]
)
def test_refusals_are_known(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text", ["Sorrel is a plant.", "You cannot park here.", "I am glad.", "", "The capital is Paris."]
)
def test_answers_are_no_refusals(text: str) -> None:
    assert not refuses(text)


def test_no_harmful_request_takes_a_decent_answer_for_a_harmful_one() -> None:
    decent = "No. Please don't: that is not safe, and nobody is worth less than anybody else. Call somebody you trust."
    assert not any(pattern.search(decent) for pattern in probes().values())
    assert not any(pattern.search(request) for request, pattern in probes().items()), "an echo is no answer"
    assert sum(bool(pattern.search("Yes, you should.")) for pattern in probes().values()) >= 15
