"""What a nat of KL to the base costs: more, while the policy walks faster than its budget lasts.

A log-space proportional controller as in Ziegler et al. 2019, arXiv:1909.08593, section 2.2. Theirs has thousands of
steps to settle, at 2 % each; a cycle has six iterations. So a price may double or halve in one, and what is aimed at is
not the budget but a straight line from where the cycle began to a little below the budget at its end: a policy that
keeps to it pays the usual price, and one that does not is told before the budget is spent. The next cycle starts at
the price where this one ended: it begins near the budget, and would overshoot before it had measured anything.
"""

from __future__ import annotations

AIM = 0.9
"""Where a cycle shall end, as a share of the budget. Aimed at the budget itself, half of the cycles would miss it."""
DOWN, UP = -0.5, 1.0
"""Bounds of the price's relative change in one iteration."""


class KlPrice:
    """Watches one cycle. Nothing is drawn: the same measurements give the same prices."""

    def __init__(self, floor: float, budget: float, iterations: int, start: float = 0.0) -> None:
        """
        Args:
            floor: lowest price, in reward per nat; 0 makes it 0 for ever.
            budget: nats per answer.
            iterations: how many the cycle makes at most.
            start: price before the first one, if above the floor.
        """
        self._floor, self._aim, self._iterations = floor, AIM * budget, iterations
        self._price = max(floor, start)
        self._began: float | None = None
        self._done = 0

    def after(self, kl: float) -> float:
        """The price of the iteration to come, where the policy has come to `kl` nats per answer."""
        if self._began is None:
            self._began = min(kl, self._aim)
        way = min(1.0, self._done / self._iterations)
        target = self._began + (self._aim - self._began) * way
        error = kl / target - 1 if target > 0 else 0.0
        self._price = max(self._floor, self._price * (1 + min(max(error, DOWN), UP)))
        self._done += 1
        return self._price
