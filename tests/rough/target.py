"""A server that is treated roughly, what its operator sees of it, and somebody who only wants to chat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
from grpc import aio

from tests.processes import Half, eventually, free_port
from tests.rough.messages import giants, overwhelm
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

LONGEST_CALL = 6.0
SETTINGS = (
    "server.threads=1", "server.max_sequences=16", f"server.default_deadline={LONGEST_CALL}", "server.max_tokens=512",
    "server.default_max_tokens=8",
    # A random model computes next to nothing: with top-p each further place makes a step some 30 % longer. With the
    # embedded model it is 5 %.
    "server.rollout_sequences_busy=2",
    # So little that `warm` fills it.
    "server.kv_cache_bytes=8388608",
)  # fmt: skip
RECOVERY = 5.0
"""Seconds after which nothing may be left of what callers did."""
GROWTH = 1.05
SLOWDOWN = 2.0
STEP_SIZES = 64
"""More than the engine keeps compiled products for."""
ENOUGH = 200
"""Calls from which on a p99 says more than the slowest of them does, and growth more than first use does."""


def complaints(half: Half) -> list[str]:
    """What it has logged that somebody should look into."""
    return [line for line in half.log.read_text().splitlines() if "level=error" in line or "raceback" in line]


@dataclass(frozen=True)
class Load:
    """What a server is busy with, as its metrics say."""

    calls: float
    answers: float
    """That hold a place or wait for one."""
    requests: float
    """In the engine."""
    cache: float
    """Share of the engine's cache in use."""


IDLE = Load(0, 0, 0, 0)


@dataclass
class Target:
    """`python -m server` with a tiny model."""

    half: Half
    address: str
    admin: str

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.half.http_port}"

    async def load(self) -> Load:
        def read() -> Load:
            metric = self.half.metric
            return Load(
                calls=metric("thumbwheel_running_calls"),
                answers=metric("thumbwheel_running_answers", source="chat")
                + metric("thumbwheel_running_answers", source="rollout")
                + metric("thumbwheel_queued_answers"),
                requests=metric("vllm:num_requests_running") + metric("vllm:num_requests_waiting"),
                cache=metric("vllm:kv_cache_usage_perc"),
            )

        return await asyncio.to_thread(read)

    async def idle(self) -> bool:
        return await self.load() == IDLE

    async def metric(self, name: str, **labels: str) -> float:
        return await asyncio.to_thread(self.half.metric, name, **labels)

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process."""
        assert self.half.process is not None
        server = psutil.Process(self.half.process.pid)
        [engine] = server.children(recursive=True)
        return {"server": server.memory_info().rss, "engine": engine.memory_info().rss}

    def complaints(self) -> list[str]:
        return complaints(self.half)


@asynccontextmanager
async def target(folder: Path, model: Path, redis_url: str, *settings: str) -> AsyncIterator[Target]:
    """Ready inside."""
    grpc, admin, http = free_port(), free_port(), free_port()
    sets = [
        *SETTINGS, f"data_dir={folder}", f"model.path={model}", f"redis.url={redis_url}", f"server.grpc_port={grpc}",
        f"server.admin_port={admin}", f"server.http_port={http}", "server.web_port=0", *settings,
    ]  # fmt: skip
    half = Half("server", http, [word for item in sets for word in ("--set", item)], folder / "server.log")
    half.start()
    try:
        await half.ready()
        yield Target(half, f"127.0.0.1:{grpc}", f"127.0.0.1:{admin}")
    finally:
        half.stop()


async def warm(server: Target) -> None:
    """Fills batch, cache and heap once: memory that is touched for the first time is no leak."""
    async with aio.insecure_channel(server.address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)

        async def ask(text: str, tokens: int) -> None:
            message = pb.Message(role=pb.ROLE_USER, content=text)
            sampling = pb.Sampling(max_tokens=tokens, temperature=1, top_p=0.9, seed=1)
            request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], sampling=sampling))
            await chat.Chat(request, timeout=LONGEST_CALL)

        await asyncio.gather(*(ask("word " * 1000, 4 * answer) for answer in range(1, 17)))
        for number in range(STEP_SIZES):  # no two with the same beginning, which the cache would save a step
            await ask(f"{number} " + "word " * 6 * number, 1)
    await overwhelm(server.address, 2 * len(giants()))
    await eventually(server.idle, RECOVERY)


@dataclass
class Visitor:
    """Chats and rates as people do, one call after another; every failed call fails the test."""

    address: str

    async def visit(self, count: int) -> list[float]:
        """Makes so many calls and says how long they took."""
        async with self.about() as calls:
            await eventually(lambda: len(calls) >= count, 300)
        return calls

    @asynccontextmanager
    async def about(self) -> AsyncIterator[list[float]]:
        calls: list[float] = []
        leaving = asyncio.Event()
        async with aio.insecure_channel(self.address) as channel:
            person = asyncio.create_task(self._person(channel, calls, leaving))
            try:
                yield calls
            finally:
                leaving.set()
                await person

    async def _person(self, channel: aio.Channel, calls: list[float], leaving: asyncio.Event) -> None:
        chat, feedback = chat_pb2_grpc.ChatServiceStub(channel), feedback_pb2_grpc.FeedbackServiceStub(channel)
        metadata = (("x-thumbwheel-user", "visitor"),)
        message = pb.Message(role=pb.ROLE_USER, content="Hello, how are you?")
        asked = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=8))
        while not leaving.is_set():
            began = perf_counter()
            reply = await chat.Chat(chat_pb2.ChatRequest(input=asked), timeout=LONGEST_CALL, metadata=metadata)
            response = reply.answers[0].receipt.response_id
            vote = feedback_pb2.RateRequest(response_id=response, idempotency_key=response, thumb=pb.THUMB_UP)
            await feedback.Rate(vote, timeout=LONGEST_CALL, metadata=metadata)
            calls.append(perf_counter() - began)


@asynccontextmanager
async def unharmed(server: Target, visits: int) -> AsyncIterator[None]:
    """Whatever happens inside: a visitor beside it is answered, at least half as fast, and nothing stays behind.

    Pace and memory are judged in long runs alone.

    Args:
        visits: how many calls say how fast the server is when nobody bothers it.
    """
    visitor = Visitor(server.address)
    calm = await visitor.visit(visits)
    await eventually(server.idle, RECOVERY)
    before, old = server.memory(), len(server.complaints())
    async with visitor.about() as calls:
        yield
        rough = calls[:]
        await eventually(lambda: len(calls) >= len(rough) + 2, RECOVERY)
    await eventually(server.idle, RECOVERY)
    after = server.memory()
    slow = [float(np.percentile(calls, 99)) if calls else 0.0 for calls in (calm, rough)]
    growth = {name: after[name] / bytes_ for name, bytes_ in before.items()}
    grown = ", ".join(f"{name} {before[name] >> 20} -> {after[name] >> 20} MiB" for name in before)
    print(f"p99 of {len(calm)} and {len(rough)} visits: {slow[0]:.3f} s, {slow[1]:.3f} s; {grown}")
    assert not server.complaints()[old:], server.complaints()[old:][:3]
    if visits >= ENOUGH:
        assert max(growth.values()) < GROWTH, grown
    if min(len(calm), len(rough)) >= ENOUGH:
        assert slow[1] < SLOWDOWN * slow[0]
