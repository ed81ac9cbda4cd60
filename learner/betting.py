"""An anytime-valid test by betting: is the new version liked less than the old one?

Against the hypothesis that it is liked at least as well one holds a stake of 1 and bets on the votes at fair odds. If
the hypothesis is true, the expected stake never grows, and the chance that it *ever* reaches 1/alpha is at most alpha
(Ville's inequality), however often one looks. So a judge may look after every vote, and decide when it likes.

Sources
    [SAFE]  Turner, Ly, Gruenwald 2021, arXiv:2106.02693: two-sample tests, one e-value per block of votes of both arms
    [BET]   Waudby-Smith, Ramdas 2023, arXiv:2010.09686: a fixed mixture of stakes needs no tuning to what is true
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

EFFECTS = np.array([0.1, 0.16, 0.25])
"""Drops in the share of good votes that are bet on with equal stakes. The mean of fair bets is a fair bet."""
MOST_CONTROLS = 4
"""Votes of the old arm in one block; more would add next to nothing."""
WAITING_CONTROLS = 32
"""Concurrent votes of the old arm that wait for the new arm's; the oldest lapse, for a control must not be history."""
_PRIOR = 2.0
"""Votes that the first guess of the share of good ones, a half, is worth."""
_EDGE = 0.02
"""No share is thought to be nearer to 0 or 1, where a single vote could take the whole stake."""


class DropTest:
    """Bets that the new arm's share of good votes lies below the old arm's. Feed it votes in the order they were cast.

    A block is one vote of the new arm (x) and m of the old one (y). m hangs on how many wait, never on what they say.
    With a and b the shares bet on in the new and the old arm, from earlier blocks alone, and c = (a + m b) / (1 + m), a
    block multiplies a stake by ([SAFE], equation 2)

        (a/c)^x ((1-a)/(1-c))^(1-x) * prod_i (b/c)^(y_i) ((1-b)/(1-c))^(1-y_i)

    whose expectation is at most 1 where both shares are equal, and less where the new arm's is higher, for a < c < b.
    """

    def __init__(self, before: Iterable[bool] = (), expected: int = 1) -> None:
        """
        Args:
            before: votes of an old arm that is not concurrent but lies wholly in the past; they do not lapse.
            expected: blocks among which waiting votes of the old arm are spread.
        """
        past = list(before)
        self.blocks = 0
        self.log_e = 0.0
        """Logarithm of the stake as it stands."""
        self.log_peak = 0.0
        """The highest it ever stood: what Ville's inequality speaks of."""
        self._expected = expected
        self._new = deque[bool]()
        self._old = deque[bool](past, maxlen=max(WAITING_CONTROLS, len(past)))
        self._logs = np.zeros(len(EFFECTS))
        self._good, self._all = _PRIOR / 2, _PRIOR

    def add(self, new: bool, good: bool) -> None:
        """One vote, of the new arm or the old one."""
        (self._new if new else self._old).append(good)
        while self._new and self._old:
            controls = min(MOST_CONTROLS, max(1, len(self._old) // self._expected), len(self._old))
            self._bet(self._new.popleft(), [self._old.popleft() for _ in range(controls)])

    def rejects(self, alpha: float) -> bool:
        """Whether the stake ever reached 1/alpha: a drop, with a chance of at most `alpha` that there is none."""
        return self.log_peak >= -math.log(alpha)

    def _bet(self, new: bool, old: list[bool]) -> None:
        m, k = len(old), sum(old)
        guess = min(max(self._good / self._all, _EDGE), 1 - _EDGE)
        a = np.maximum(guess - EFFECTS * m / (1 + m), _EDGE / 2)  # (len(EFFECTS),), as all that follows
        b = np.minimum(guess + (guess - a) / m, 1 - _EDGE / 2)
        c = (a + m * b) / (1 + m)
        self._logs += np.log(a / c) if new else np.log((1 - a) / (1 - c))
        self._logs += k * np.log(b / c) + (m - k) * np.log((1 - b) / (1 - c))
        self._good, self._all = self._good + new + k, self._all + 1 + m
        self.blocks += 1
        self.log_e = float(np.logaddexp.reduce(self._logs)) - math.log(len(EFFECTS))
        self.log_peak = max(self.log_peak, self.log_e)
