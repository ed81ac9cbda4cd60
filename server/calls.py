"""The calls that run on a server, whichever door they came through: a stop waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from server import metrics


class Calls:
    """Counts running calls. `closed` tells the doors to let no new one in."""

    def __init__(self) -> None:
        self.closed = False
        self._ending = _Count()
        self._endless = _Count()

    def close(self) -> None:
        """From now on new calls are refused, on old and new connections alike."""
        self.closed = True

    @property
    def busy(self) -> bool:
        """Whether a call is running, those aside that have no end of their own."""
        return not self._ending.none.is_set()

    async def idle(self) -> None:
        """Returns when no call is running, those aside that have no end of their own."""
        await self._ending.none.wait()

    async def gone(self) -> None:
        """Returns when every handler has cleaned up. grpc's own stop may return before that."""
        await self._ending.none.wait()
        await self._endless.none.wait()

    @contextmanager
    def running(self, *, endless: bool = False) -> Iterator[None]:
        """Counts a call for as long as the context lasts."""
        count = self._endless if endless else self._ending
        count.began()
        metrics.RUNNING_CALLS.inc()
        try:
            yield
        finally:
            metrics.RUNNING_CALLS.dec()
            count.ended()


class _Count:
    """`none` is set while it is 0."""

    def __init__(self) -> None:
        self.none = asyncio.Event()
        self.none.set()
        self._count = 0

    def began(self) -> None:
        self._count += 1
        self.none.clear()

    def ended(self) -> None:
        self._count -= 1
        if not self._count:
            self.none.set()
