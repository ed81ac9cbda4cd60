"""A task that produces and a reader that keeps its own pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

E = TypeVar("E")


async def stream(produce: Callable[[Callable[[E], None]], Coroutine[Any, Any, None]]) -> AsyncGenerator[E, None]:
    """Yields what `produce` emits and then raises what it raised.

    It runs in a task of its own, so a caller who reads slowly holds no place and delays no record; what waits here is
    bounded by what one call may sample. Closing the generator cancels the task and waits until it has cleaned up.
    """
    end = object()
    items: asyncio.Queue[Any] = asyncio.Queue()
    task = asyncio.ensure_future(produce(items.put_nowait))
    task.add_done_callback(lambda _: items.put_nowait(end))
    try:
        while (item := await items.get()) is not end:
            yield item
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
