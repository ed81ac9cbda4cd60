"""What a policy is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cli import prompts
from learner import anchor
from learner.anchor import Anchor
from learner.rollouts import Sampled
from thumbwheel import competence


def test_what_measures_a_policy_does_not_hold_it() -> None:
    asked = {question.lower() for question in anchor.questions()}
    assert len(asked) == len(anchor.questions()) >= 60
    assert not asked & {question.text.lower() for question in competence.questions()}
    assert not asked & {prompt.lower() for prompt in (*prompts.held_out(), *prompts.rated())}


async def test_the_base_is_asked_once_and_greedily() -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    class Server:
        async def sample(self, version: str, asked: Sequence[Sequence[int]], **how: Any) -> list[Sampled]:
            calls.append((version, how))
            return [Sampled(place, (7, place), (0.0, 0.0), "", True) for place in range(len(asked))]

    held = Anchor(Server(), lambda text: [len(text)])  # type: ignore[arg-type]
    answers = await held.answers()
    assert await held.answers() is answers
    assert [(version, how["temperature"]) for version, how in calls] == [("base", 0.0)]
    assert answers[3] == ((len(anchor.questions()[3]),), (7, 3))
