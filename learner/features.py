"""Frozen features of answers, computed once each."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from learner.dataset import Answer
from learner.policy import Policy

PART = 64


class FeatureCache:
    """Keeps the features of the `capacity` answers used last; 2 KiB each for a hidden size of 576."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._known: OrderedDict[str, NDArray[np.float32]] = OrderedDict()

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
        for answer in answers:
            self._known.move_to_end(answer.key)
        found = np.stack([self._known[answer.key] for answer in answers]).astype(np.float64)
        while len(self._known) > max(self._capacity, len(answers)):
            self._known.popitem(last=False)
        return found
