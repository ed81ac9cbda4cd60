"""Plain questions with checkable answers: what a version must not forget while it learns to please."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learner.rollouts import Rollouts
from thumbwheel import competence

Render = Callable[[str], Sequence[int]]
"""A user's message -> prompt token ids through the chat template."""


class Competence:
    """Asks a version all questions, greedily, once."""

    def __init__(self, rollouts: Rollouts, render: Render) -> None:
        self._rollouts = rollouts
        self._asked = competence.questions()
        self._prompts = [render(question.text) for question in self._asked]
        self._base: frozenset[str] | None = None

    @property
    def questions(self) -> int:
        return len(self._asked)

    async def right(self, version: str) -> frozenset[str]:
        """The questions that a version answers right. The base never changes, so it is asked once a process."""
        if version == "base" and self._base is not None:
            return self._base
        rollouts = await self._rollouts.sample(
            version, self._prompts, max_tokens=competence.MAX_TOKENS, temperature=0.0, seed=0
        )
        right = frozenset(
            self._asked[rollout.prompt].text
            for rollout in rollouts
            if competence.check(self._asked[rollout.prompt], rollout.text)
        )
        if version == "base":
            self._base = right
        return right
