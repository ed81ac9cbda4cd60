"""Chat streams that run while versions are swapped, to see that no swap fails or cuts one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from cli.connection import CHAT_SECONDS, Services
from cli.exam import ended_well
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb

MAX_TOKENS = 160
"""Long enough to lie across a swap."""


class Visitors:
    """While they are let in, each has an answer streaming all the time. They never rate."""

    def __init__(self, services: Services, prompts: Sequence[str], seed: int, number: int = 2) -> None:
        self.finished = 0
        self.failed = 0
        """Streams that ended with an error."""
        self.truncated = 0
        """Streams that ended without error and are not whole: a receipt first, a right finish last."""
        self.running = 0
        """Streams that have sent their receipt and not ended yet."""
        self._services = services
        self._prompts = prompts
        self._seed = seed
        self._number = number
        self._open = asyncio.Event()

    def let_in(self, welcome: bool) -> None:
        """Whether answers that end are followed by new ones."""
        if welcome:
            self._open.set()
        else:
            self._open.clear()

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """At its end the streams under way may finish, so that every one is counted."""
        leaving = asyncio.Event()
        tasks = [asyncio.create_task(self._visit(number, leaving)) for number in range(self._number)]
        try:
            yield
            leaving.set()
            self._open.set()
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _visit(self, number: int, leaving: asyncio.Event) -> None:
        chance = random.Random(f"{self._seed}/visitor {number}")
        while True:
            await self._open.wait()
            if leaving.is_set():
                return
            try:
                whole = await self._stream(number, chance.choice(self._prompts))
            except grpc.aio.AioRpcError:
                self.failed += 1
                await asyncio.sleep(1)  # a server that is away is not asked in a tight loop
            else:
                self.finished += 1
                self.truncated += not whole

    async def _stream(self, number: int, prompt: str) -> bool:
        """Whether the answer was whole."""
        request = chat_pb2.StreamChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
                sampling=pb.Sampling(max_tokens=MAX_TOKENS, temperature=1),
            )
        )
        metadata = self._services.identity(f"visitor-{number}")
        events: list[chat_pb2.StreamChatResponse] = []
        try:
            async for event in self._services.chat.StreamChat(request, timeout=CHAT_SECONDS, metadata=metadata):
                self.running += not events
                events.append(event)
        finally:
            self.running -= bool(events)
        return _whole(events)


def _whole(events: Sequence[chat_pb2.StreamChatResponse]) -> bool:
    kinds = [event.WhichOneof("event") for event in events]
    if len(kinds) < 2 or kinds[0] != "receipt" or kinds[-1] != "finish" or set(kinds[1:-1]) - {"delta"}:
        return False
    return ended_well(events[-1].finish, MAX_TOKENS)
