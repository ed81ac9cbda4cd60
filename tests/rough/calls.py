"""Calls that their callers give up: cancelled, out of time, or never read."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack

from grpc import aio

from tests.http2 import Connection
from tests.rough.attackers import crowd
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

AT_ONCE = 4
PACE = 0.03
STREAM_CHAT = "/thumbwheel.v1.ChatService/StreamChat"


def story(tokens: int, n: int = 1) -> chat_pb2.StreamChatRequest:
    message = pb.Message(role=pb.ROLE_USER, content="Tell me a story.")
    return chat_pb2.StreamChatRequest(
        input=chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=tokens), n=n)
    )


async def cancel(address: str, count: int, seed: int) -> Counter[str]:
    """Leaves streams before, at or after their first events; says how many events had come."""
    dice, seen = random.Random(seed), Counter[str]()
    async with aio.insecure_channel(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)

        async def one(_: int) -> None:
            call, events = chat.StreamChat(story(256)), dice.choice((0, 0, 1, 2, 5))
            if not events:
                await asyncio.sleep(dice.uniform(0, 0.02))
            for _ in range(events):
                await call.read()
            call.cancel()
            seen[f"{events} events"] += 1

        await crowd(range(count), AT_ONCE, one)
    return seen


async def expire(address: str, count: int, seed: int) -> Counter[str]:
    """Makes calls that cannot end within their deadlines; says how they ended."""
    dice, codes = random.Random(seed), Counter[str]()
    async with aio.insecure_channel(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)

        async def one(_: int) -> None:
            try:
                await chat.Chat(chat_pb2.ChatRequest(input=story(512).input), timeout=dice.uniform(0, 0.06))
                codes["OK"] += 1
            except aio.AioRpcError as error:
                codes[error.code().name] += 1

        await crowd(range(count), AT_ONCE, one)
    return codes


async def abandon(address: str, count: int, seconds: float) -> None:
    """Asks for streams, gives no room for a single byte of them, keeps the connections, and is gone without a word."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            connection = await stack.enter_async_context(Connection.to(address, window=0))
            await connection.call(STREAM_CHAT, story(16).SerializeToString())
            await asyncio.sleep(PACE)  # for all of them to find places
        await asyncio.sleep(seconds)
