"""Group commit: what arrives while one write is on its way to the disk travels together as the next.

A vote of its own costs the server several times what it costs Redis: a connection, a round trip, a wait for the disk.
A single writer makes groups as large as the load. A lonely vote goes at once; only company is worth waiting for, and it
pays twice, because what is answered together also leaves the server together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from thumbwheel.store import ScriptCall, Store, Value

LARGEST: Final = 128
"""Calls in a group; Redis does nothing else while it runs one."""
LINGER_SECONDS: Final = 0.002
"""How long a group gathers, once the one before it was more than a single call."""


class GroupCommit:
    """Runs one durable script for many callers."""

    def __init__(self, store: Store, script: str) -> None:
        self._store = store
        self._script = script
        self._waiting: list[tuple[ScriptCall, asyncio.Future[Any]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def run(self, keys: Sequence[str], args: Sequence[Value]) -> Any:
        """As `Store.script` with `durable`. A caller that leaves takes nothing back: the write goes on."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(((keys, args), answer))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write(), name=f"group-commit-{self._script}")
        return await answer

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                try:
                    replies = await self._store.scripts(self._script, [call for call, _ in group], durable=True)
                except Exception as error:  # noqa: BLE001 - whatever it is, every caller hears it
                    # Those behind too: they would wait as long again, only to hear the same.
                    group, self._waiting = group + self._waiting, []
                    replies = [error] * len(group)
                for (_, answer), reply in zip(group, replies, strict=True):
                    _resolve(answer, reply)
                if len(group) > 1:
                    await asyncio.sleep(LINGER_SECONDS)
        finally:
            self._writer = None


def _resolve(answer: asyncio.Future[Any], reply: Any) -> None:
    if answer.done():  # its caller has left
        return
    if isinstance(reply, Exception):
        answer.set_exception(reply)
    else:
        answer.set_result(reply)
