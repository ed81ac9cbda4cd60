"""Calls that are worth a second try, and a count of how often one was needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

Answered = TypeVar("Answered")

TRANSIENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


class Patience:
    """Repeats what was refused for now, for up to `seconds` a call. Only for calls that may be repeated.

    A server that has never answered is not waited for: whoever mistyped its address learns so at once.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.failures = 0
        """Calls that did not go well, whether or not a later try did."""
        self._seconds = seconds
        self._answered = False

    async def call(
        self, attempt: Callable[[], Awaitable[Answered]], also: tuple[grpc.StatusCode, ...] = ()
    ) -> Answered:
        """Raises grpc.RpcError when it fails for another reason than TRANSIENT or `also`, or for too long."""
        loop = asyncio.get_running_loop()
        deadline, wait = loop.time() + self._seconds, 0.1
        while True:
            try:
                answer = await attempt()
            except grpc.aio.AioRpcError as error:
                self.failures += 1
                away = error.code() == grpc.StatusCode.UNAVAILABLE and not self._answered
                if away or error.code() not in TRANSIENT + also or loop.time() + wait > deadline:
                    raise
            else:
                self._answered = True
                return answer
            await asyncio.sleep(wait)
            wait = min(2 * wait, 5.0)
