"""Hours of use while the learner cycles: nothing fails, nothing gets slower, nothing grows.

SOAK_MINUTES shortens the hour. What capacity means is measured first, with the learner at work. Whether an hour has
made the server slower is asked beside one that is new, in turn: a machine that others share may itself be twice as fast
in one ten minutes as in the next. Shifts of p99 within the hour, which are printed, may be such a machine's. Pace and
memory are judged from TELLING minutes on.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np
import psutil
import pytest
from grpc import aio

from tests.faults.world import SETTINGS
from tests.processes import Half, free_port
from tests.redis_process import RedisProcess
from tests.rough.target import GROWTH, Target, complaints, target, warm
from thumbwheel.registry import BASE, Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
TELLING = 20.0
SHARE = 0.8
DRIFT = 1.1
PAIRS = 10
"""Comparisons with a new server: of a minute each, in an hour of use."""
CAPACITY_SECONDS = 60.0
CROWD = 16
ROLLOUTS = "server.rollout_sequences_busy=4"
"""As the product comes. Where faults are looked for the learner has more, and every person who comes ends its work."""
QUEUE = "server.max_queue=256"
"""People come at random. Before 16 places and at this load one of an hour's quarter of a million is likely to find 64
others waiting by chance alone, and would be refused; here waiting shows in the p99."""
CHANCE = "learner.tripwires.reward_cycles=1000000"
"""What these people like is chance: a reward model that finds reasons for it freezes the learner, rightly."""
VOTES = 0.25
"""Share of the answers that somebody rates."""


@dataclass
class People:
    """Who come at a given rate, whether or not others have been answered; every failed call fails the test."""

    chat: chat_pb2_grpc.ChatServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub
    dice: random.Random
    calls: list[float] = field(default_factory=list)
    """Seconds that each chat call took."""

    async def one(self) -> None:
        began = perf_counter()
        message = pb.Message(role=pb.ROLE_USER, content=f"Question {self.dice.randrange(200)}?")
        sampling = pb.Sampling(max_tokens=self.dice.randrange(8, 24))
        request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], sampling=sampling))
        answer = (await self.chat.Chat(request, timeout=30)).answers[0]
        self.calls.append(perf_counter() - began)
        if self.dice.random() < VOTES:
            response, text = answer.receipt.response_id, answer.text
            thumb = pb.THUMB_UP if sum(map(ord, text)) % 2 else pb.THUMB_DOWN
            vote = feedback_pb2.RateRequest(response_id=response, idempotency_key=response, thumb=thumb)
            await self.feedback.Rate(vote, timeout=30)

    async def capacity(self, seconds: float) -> float:
        """Calls a second when everybody comes back at once."""
        before, end = len(self.calls), monotonic() + seconds

        async def member() -> None:
            while monotonic() < end:
                await self.one()

        await asyncio.gather(*(member() for _ in range(CROWD)))
        return (len(self.calls) - before) / seconds

    async def come(self, rate: float, seconds: float) -> None:
        """Arrivals at random, `rate` a second."""
        end = monotonic() + seconds
        async with asyncio.TaskGroup() as people:
            while monotonic() < end:
                people.create_task(self.one())
                await asyncio.sleep(self.dice.expovariate(rate))


@asynccontextmanager
async def cycling(folder: Path, server: Target) -> AsyncIterator[Half]:
    """A learner that makes versions for the server, beside it."""
    port = free_port()
    sets = [*server.half.arguments[1::2], f"learner.http_port={port}", "learner.niceness=15", "learner.max_votes=48"]
    sets.append(CHANCE)
    learner = Half("learner", port, [word for item in sets for word in ("--set", item)], folder / "learner.log")
    learner.start()
    try:
        await learner.ready()
        yield learner
    finally:
        learner.stop()


@dataclass
class Watch:
    """What each second shows."""

    processes: dict[str, psutil.Process]
    registry: Registry
    memory: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    cycles: int = 0

    async def look(self) -> None:
        before = await self.registry.committed()
        while True:
            for name, process in self.processes.items():
                self.memory[name].append(process.memory_info().rss)
            self.cycles = await self.registry.committed() - before
            await asyncio.sleep(1)

    def growth(self) -> dict[str, float]:
        """Of the least that the last third saw over the first's: what is kept. Peaks of a cycle last for a second."""
        return {name: min(rss[-len(rss) // 3 :]) / min(rss[: len(rss) // 3 + 1]) for name, rss in self.memory.items()}


@dataclass
class Place:
    """A server, those who come to it, and its learner."""

    server: Target
    people: People
    learner: Half
    registry: Registry

    def complaints(self) -> list[str]:
        return self.server.complaints() + complaints(self.learner)


@asynccontextmanager
async def opened(folder: Path, model: Path, redis_url: str) -> AsyncIterator[Place]:
    """With a first version: the base costs less than those that come after it."""
    async with (
        target(folder, model, redis_url, *SETTINGS, ROLLOUTS, QUEUE) as server,
        aio.insecure_channel(server.address) as channel,
        cycling(folder, server) as learner,
    ):
        chat, feedback = chat_pb2_grpc.ChatServiceStub(channel), feedback_pb2_grpc.FeedbackServiceStub(channel)
        people = People(chat, feedback, random.Random(1))
        await warm(server)
        store = await Store.open(redis_url, "default")
        registry = Registry(store)
        while (await registry.live()).name == BASE:
            await people.come(5, 5)  # fewer than would fit: rollouts take what people leave
        yield Place(server, people, learner, registry)
        await store.close()


async def drift(old: People, new: People, rate: float, seconds: float) -> float:
    """p99 of one over that of the other. They are visited in turn, so that what else the machine does hits both."""
    await new.come(rate, seconds / 6)  # its caches and pools
    old.calls.clear()
    new.calls.clear()
    for _ in range(PAIRS):
        for people in (old, new):
            await people.come(rate, seconds / 2 / PAIRS)
    p99 = [float(np.percentile(people.calls, 99)) for people in (old, new)]
    print(f"p99 {p99[0]:.3f} s, of a new server {p99[1]:.3f} s, {len(old.calls)} and {len(new.calls)} calls")
    return p99[0] / p99[1]


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 85 + 1200)  # the hour, a sixth before it and after it, and the first versions
async def test_use_at_four_fifths_of_capacity(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, redis_url: str, own_redis: RedisProcess
) -> None:
    seconds = MINUTES * 60
    async with opened(tmp_path_factory.mktemp("old"), tiny_model, redis_url) as old:
        people = old.people
        rate = SHARE * await people.capacity(CAPACITY_SECONDS)
        print(f"{rate=:.1f}/s", flush=True)
        await people.come(rate, seconds / 6)  # until caches, pools and the learner's model have their size
        people.calls.clear()
        assert old.server.half.process is not None
        assert old.learner.process is not None
        top = psutil.Process(old.server.half.process.pid)
        processes = {"server": top, "engine": top.children()[0], "learner": psutil.Process(old.learner.process.pid)}
        seen = Watch(processes, old.registry)
        async with asyncio.TaskGroup() as both:
            watching = both.create_task(seen.look())
            for sixth in range(1, 7):
                before = len(people.calls)
                await people.come(rate, seconds / 6)
                p50, p99, most = np.percentile(people.calls[before:], (50, 99, 100))
                words = f"{sixth}/6: {len(people.calls)} calls, p50 {p50:.3f}, p99 {p99:.3f}, most {most:.3f} s"
                print(f"{words}, {seen.cycles} cycles, growth={seen.growth()}", flush=True)
            watching.cancel()
        old.learner.stop()
        async with opened(tmp_path_factory.mktemp("new"), tiny_model, own_redis.url) as new:
            new.learner.stop()
            slower = await drift(people, new.people, rate, seconds / 6)
            wrong = old.complaints() + new.complaints()
    assert not wrong, wrong[:3]
    assert seen.cycles > MINUTES / 4, "the learner has stood still"
    if MINUTES >= TELLING:
        assert max(seen.growth().values()) < GROWTH, seen.growth()
        assert slower < DRIFT
