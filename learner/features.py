"""Frozen features of answers, computed once each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.dataset import Answer
from learner.policy import Policy

PART = 64


class FeatureCache:
    """Keeps the features of the answers that were asked for last, and of no others: who was erased is forgotten here
    too. 2 KiB each for a hidden size of 576.
    """

    def __init__(self) -> None:
        self._known: dict[str, NDArray[np.float32]] = {}

    async def of(
        self, answers: Sequence[Answer], policy: Policy, progress: Callable[[float], None]
    ) -> NDArray[np.float64]:
        """(N, D), row i for answers[i]."""
        missing = [answer for answer in answers if answer.key not in self._known]
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            rows = await asyncio.to_thread(policy.features, [(a.prompt_ids, a.answer_ids) for a in part])
            self._known.update((answer.key, row) for answer, row in zip(part, rows, strict=True))
            progress((start + len(part)) / len(missing))
        self._known = {answer.key: self._known[answer.key] for answer in answers}
        return np.stack([self._known[answer.key] for answer in answers]).astype(np.float64)
