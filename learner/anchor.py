"""What a policy is held to while it learns to please: the base's own answers to plain questions.

Rewarded answers move weights that plain knowledge uses too. InstructGPT mixes pretraining text into PPO for that
(PPO-ptx, arXiv:2203.02155, equation 2); here the base itself says what it knows, in whatever language model it is.
Nothing is taught: right or wrong, the policy shall go on as the base does. The gate asks other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

from learner.policy import Answer
from learner.rollouts import Rollouts
from thumbwheel.registry import BASE

MAX_TOKENS = 24
"""Enough for the answer itself; base models ramble on after it."""


@cache
def questions() -> tuple[str, ...]:
    """All questions, always in the same order."""
    return tuple(files("learner").joinpath("anchor.txt").read_text(encoding="utf-8").splitlines())


class Anchor:
    """Asks the base, greedily, once a process."""

    def __init__(self, rollouts: Rollouts, render: Callable[[str], Sequence[int]]) -> None:
        self._rollouts = rollouts
        self._prompts = [tuple(render(question)) for question in questions()]
        self._answers: tuple[Answer, ...] = ()

    async def answers(self) -> tuple[Answer, ...]:
        """Prompt and answer token ids."""
        if not self._answers:
            found = await self._rollouts.sample(BASE, self._prompts, max_tokens=MAX_TOKENS, temperature=0.0, seed=0)
            self._answers = tuple((self._prompts[rollout.prompt], rollout.token_ids) for rollout in found)
        return self._answers
