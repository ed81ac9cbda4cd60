"""A thumbwheel that things happen to: two servers, a learner, a store on a disk that may fail, people who rate.

Everything is a real process on real sockets; the model is tiny. `audit` says in the end what became of every vote.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import grpc
from grpc import aio

from tests.processes import Half, eventually, free_port
from tests.redis_process import RedisProcess
from thumbwheel.config import Feedback
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.registry import BASE, Registry
from thumbwheel.store import Store
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

RATERS = 6
PAUSE = 0.5
"""Mean seconds between a vote and the next question: people who never think would leave the learner no time."""
RECOVERY = 10.0
"""Seconds after which whatever happened must be over for people."""
PATIENCE = 5.0
"""Seconds for which an answer whose record waits in a server's memory may be unknown to the store."""
MIN_VOTES = 24
AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
"""How a call ends whose server was killed under it."""

# A random model pleases nobody and knows nothing, so the bars of reward model and gate are on the floor here. What
# costs time and proves nothing of faults is small: a cycle takes seconds. Its people like by chance, so a reward model
# that finds reasons would freeze the learner, rightly: no wire is set.
SETTINGS = (
    f"learner.min_votes={MIN_VOTES}", "learner.reward_model.min_votes=8", "learner.reward_model.window=64",
    "learner.reward_model.min_auc=0", "learner.gate.min_win_rate=0", "learner.gate.win_rate_margin=1",
    "learner.gate.min_length_ratio=0", "learner.gate.min_judge_votes=1", "learner.gate.max_kl=1000",
    "learner.gate.max_competence_loss=1", "learner.gate.max_length_ratio=1000", "learner.gate.prompts=2",
    "learner.gate.samples=1", "learner.ppo.fresh_iterations=1", "learner.ppo.rollouts=8", "learner.ppo.kl_budget=1000",
    "learner.ppo.anchor_coef=0", "learner.poll=0.2", "learner.lease=1", "learner.raters.crowd=1000",
    "learner.tripwires.sudden_change=1000", "learner.tripwires.reward_cycles=1000000", "learner.niceness=0",
    "learner.threads=1", "server.threads=1", "server.kv_cache_bytes=67108864", "server.max_sequences=16",
    "server.rollout_sequences_busy=12", "server.max_update_norm=1000", "server.drain=5",
)  # fmt: skip


def failing_disk(folder: Path) -> dict[str, str]:
    """Environment of a Redis whose disk can lose power and be full: see disk.c."""
    library, source = folder / "disk.so", Path(__file__).with_name("disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "THUMBWHEEL_DISK_FULL": str(folder / "full")}


def lose_power(redis: RedisProcess) -> None:
    """Kills it and takes away what no sync had covered; start it again afterwards."""
    redis.kill()
    for file in (redis.folder / "appendonlydir").glob("*.incr.aof"):
        note = file.with_name(f"{file.name}.synced")
        synced = int(note.read_text()) if note.exists() else 0
        if synced < file.stat().st_size:
            with file.open("r+b") as cut:
                cut.truncate(synced)


@dataclass
class People:
    """Who chat and rate as good clients do: a call that failed is made again, elsewhere, with the same key."""

    addresses: Sequence[str]
    seed: int = 1
    acknowledged: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Idempotency key -> (event id, response id) of every vote that was answered OK."""
    cast: int = 0
    """Votes, acknowledged or not."""
    refused: int = 0
    """Votes' calls that failed."""
    answers: int = 0
    unanswered: int = 0
    """Chat calls that no server answered."""
    forgotten: list[str] = field(default_factory=list)
    """Answers that were said to be logged and that the store did not know when they were rated."""
    longest: float = 0.0
    """Seconds until the slowest vote was acknowledged."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    @asynccontextmanager
    async def about(self) -> AsyncIterator[None]:
        """They come and go until the body ends."""
        leaving = asyncio.Event()
        options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 300)]
        async with AsyncExitStack() as stack:
            channels = [
                await stack.enter_async_context(aio.insecure_channel(address, options=options))
                for address in self.addresses
            ]
            people = [asyncio.create_task(self._person(number, channels, leaving)) for number in range(RATERS)]
            try:
                yield
            finally:
                leaving.set()
                await asyncio.gather(*people)

    async def rated(self, more: int, seconds: float = 60) -> None:
        """Waits until so many more votes are acknowledged."""
        goal = len(self.acknowledged) + more
        await eventually(lambda: len(self.acknowledged) >= goal, seconds)

    async def _person(self, number: int, channels: Sequence[aio.Channel], leaving: asyncio.Event) -> None:
        dice = random.Random(f"{self.seed}/{number}")
        metadata = (("x-thumbwheel-user", f"person-{number}"),)
        async with asyncio.TaskGroup() as hands:
            rating: asyncio.Task[None] | None = None
            while not leaving.is_set():
                answer = await self._chat(dice, channels, metadata)
                # Who waits for a vote to be acknowledged goes on chatting, and does not rate another answer meanwhile.
                free = rating is None or rating.done()
                if free and answer is not None and answer.finish.log_status != chat_pb2.LOG_STATUS_NOT_LOGGED:
                    rating = hands.create_task(self._rate(answer, dice, channels, metadata, leaving))
                with suppress(TimeoutError):
                    await asyncio.wait_for(leaving.wait(), dice.uniform(0, 2 * PAUSE))

    async def _chat(
        self, dice: random.Random, channels: Sequence[aio.Channel], metadata: tuple[tuple[str, str], ...]
    ) -> chat_pb2.Answer | None:
        message = pb.Message(role=pb.ROLE_USER, content=f"Question {dice.randrange(60)}?")
        asked = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=dice.randrange(4, 24)))
        for channel in dice.sample(channels, len(channels)):
            try:
                reply = await chat_pb2_grpc.ChatServiceStub(channel).Chat(
                    chat_pb2.ChatRequest(input=asked), timeout=30, metadata=metadata
                )
            except aio.AioRpcError as error:
                if error.code() not in AWAY:
                    raise
            else:
                self.answers += 1
                return reply.answers[0]
        self.unanswered += 1
        return None

    async def _rate(
        self,
        answer: chat_pb2.Answer,
        dice: random.Random,
        channels: Sequence[aio.Channel],
        metadata: tuple[tuple[str, str], ...],
        leaving: asyncio.Event,
    ) -> None:
        """Until it is acknowledged, or everybody leaves. An answer that only a killed server remembered is gone."""
        vote = feedback_pb2.RateRequest(
            response_id=answer.receipt.response_id,
            idempotency_key=f"key {next(self._numbers)}",
            thumb=pb.THUMB_UP if sum(map(ord, answer.text)) % 2 else pb.THUMB_DOWN,
        )
        self.cast += 1
        began = monotonic()
        logged = answer.finish.log_status == chat_pb2.LOG_STATUS_LOGGED
        while not leaving.is_set():
            try:
                reply = await feedback_pb2_grpc.FeedbackServiceStub(dice.choice(channels)).Rate(
                    vote, timeout=10, metadata=metadata
                )
            except aio.AioRpcError as error:
                self.refused += 1
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    if logged:
                        self.forgotten.append(vote.response_id)
                    if logged or monotonic() - began > PATIENCE:
                        return
                elif error.code() not in AWAY:
                    raise
                await asyncio.sleep(0.05)
            else:
                self.acknowledged[vote.idempotency_key] = (reply.event_id, vote.response_id)
                self.longest = max(self.longest, monotonic() - began)
                return


@dataclass
class World:
    """Everything that runs, and a look at the store beside it."""

    folder: Path
    redis: RedisProcess
    servers: list[Half]
    learner: Half
    people: People
    store: Store

    async def cycles(self) -> int:
        """How many the learner has committed."""
        return len(await Registry(self.store).lineage(10_000))

    async def settled(self) -> None:
        """Waits until the learner has learned from all that it could."""

        async def idle() -> bool:
            return await VoteStream(self.store).waiting() < MIN_VOTES

        await eventually(idle, 120)


@asynccontextmanager
async def world(
    folder: Path,
    model: Path,
    *,
    fsync: str = "always",
    disk: Mapping[str, str] | None = None,
    lacking: Sequence[str] = (),
) -> AsyncIterator[World]:
    """Ready, with nobody about yet.

    Args:
        fsync: of the store.
        disk: `failing_disk`, where it shall fail.
        lacking: commands that the store does not know.
    """
    redis = RedisProcess(folder, fsync, disk, lacking)
    redis.start()
    common = [*SETTINGS, f"data_dir={folder}", f"model.path={model}", f"redis.url={redis.url}"]

    def half(name: str, log: str, http_port: int, *ports: str) -> Half:
        sets = [*common, f"{name}.http_port={http_port}", "server.web_port=0", *ports]
        return Half(name, http_port, [word for item in sets for word in ("--set", item)], folder / log)

    chat_ports, admin_ports = [free_port(), free_port()], [free_port(), free_port()]
    servers = [
        half("server", f"server-{number}.log", free_port(), f"server.grpc_port={chat}", f"server.admin_port={admin}")
        for number, (chat, admin) in enumerate(zip(chat_ports, admin_ports, strict=True))
    ]
    learner = half("learner", "learner.log", free_port(), f"server.admin_port={admin_ports[0]}")
    people = People([f"127.0.0.1:{port}" for port in chat_ports])
    store = await Store.open(redis.url, "default")
    try:
        for server in servers:
            server.start()
        for server in servers:
            await server.ready()
        learner.start()
        await learner.ready()
        yield World(folder, redis, servers, learner, people, store)
    finally:
        learner.stop()
        for server in servers:
            server.stop()
        await store.close()
        redis.stop()


@dataclass(frozen=True)
class Audit:
    """What the store says in the end."""

    acknowledged: int
    lost: list[str]
    """Event ids that were acknowledged and are neither in the stream nor in a committed batch."""
    not_current: list[str]
    """Responses whose acknowledged vote is not the current one."""
    forgotten: list[str]
    """Answers that were said to be logged and were not."""
    doubled: int
    """Events beyond one for each vote that was cast."""
    untrained: int
    """Acknowledged votes in no committed batch."""
    trained: int
    trained_twice: list[str]
    cycles: int
    broken_lineage: list[str]
    """Cycles out of order, or trained from another version than the one that was live."""

    @property
    def sound(self) -> bool:
        """Nothing was lost, made up or done twice."""
        wrong = (
            self.lost, self.not_current, self.forgotten, self.doubled, self.trained_twice, self.broken_lineage
        )  # fmt: skip
        return not any(wrong)


async def audit(here: World) -> Audit:
    store, people = here.store, here.people
    stream = {name.decode() for name, _ in await store.call("XRANGE", store.keys.votes, "-", "+")}
    lineage = list(reversed(await Registry(store).lineage(10_000)))
    trained = [event for cycle in lineage for event in cycle.batch.event_ids]
    kept = stream | set(trained)
    acknowledged = {event for event, _ in people.acknowledged.values()}
    feedback, missing = FeedbackLog(store, Feedback()), []
    for event_id, response in people.acknowledged.values():
        turn = response.rpartition("-")[0]
        current = {found for found, _ in (await feedback.current([turn]))[turn]}
        if event_id not in current:
            missing.append(response)
    versions, _ = await Registry(store).page(10_000)
    taken_back = {version.name for version in versions if version.state == pb.VERSION_STATE_ROLLED_BACK}
    broken, released = [], [BASE]
    for number, cycle in enumerate(lineage, 1):
        while released[-1] != cycle.batch.parent and released[-1] in taken_back:
            released.pop()
        if cycle.batch.cycle_id != f"cycle-{number}" or cycle.batch.parent != released[-1]:
            broken.append(f"{cycle.batch.cycle_id} from {cycle.batch.parent}, expected {number} from {released[-1]}")
        if cycle.outcome == "released":
            released.append(cycle.version)
    return Audit(
        acknowledged=len(people.acknowledged),
        lost=sorted(acknowledged - kept),
        not_current=missing,
        forgotten=people.forgotten,
        doubled=max(0, len(kept) - people.cast),
        untrained=len(acknowledged - set(trained)),
        trained=len(trained),
        trained_twice=sorted(event for event, times in Counter(trained).items() if times > 1),
        cycles=len(lineage),
        broken_lineage=broken,
    )


async def nothing_lost(here: World) -> Audit:
    """What the learner made of the votes in the end: all that it could, and each once."""
    await here.settled()
    found = await audit(here)
    print(found)
    assert found.sound, found
    assert found.untrained < MIN_VOTES, found
    return found
