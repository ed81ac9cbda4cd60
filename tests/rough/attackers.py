"""Those who treat a server roughly have machines of their own: here, processes that get what time is left over."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, TypeVar

T = TypeVar("T")
A = TypeVar("A")

NICENESS = 19


class Attackers:
    """Runs coroutine functions, which must be importable, in another process."""

    def __init__(self) -> None:
        # A process for each: grpc's poller would outlive the event loop of the one before.
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), os.nice, (NICENESS,), max_tasks_per_child=1)

    async def run(self, attack: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, _run, attack, arguments)

    def leave(self) -> None:
        self._pool.shutdown()


def _run(attack: Callable[..., Coroutine[Any, Any, T]], arguments: tuple[Any, ...]) -> T:
    return asyncio.run(attack(*arguments))


async def crowd(items: Iterable[A], size: int, work: Callable[[A], Awaitable[None]]) -> None:
    """Does the work for every item, for `size` of them at a time."""
    todo = iter(items)

    async def member() -> None:
        for item in todo:
            await work(item)

    await asyncio.gather(*(member() for _ in range(size)))
