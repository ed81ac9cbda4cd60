"""What the spine's tests share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.redis_process import RedisProcess
from thumbwheel import config
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.records import now, response_id
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb


@pytest.fixture
async def weak(tmp_path: Path) -> AsyncIterator[Callable[[str], Awaitable[tuple[RedisProcess, Store]]]]:
    """Opens a server with weaker settings: appendfsync as given, or "off" for no file at all."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_weak(fsync: str) -> tuple[RedisProcess, Store]:
            server = RedisProcess(tmp_path, fsync)
            stack.callback(server.stop)
            server.start()
            store = await Store.open(server.url, "test")
            stack.push_async_callback(store.close)
            return server, store

        yield open_weak


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.open(redis_url, "test")
    yield store
    await store.close()


@pytest.fixture
async def own_store(own_redis: RedisProcess) -> AsyncIterator[Store]:
    store = await Store.open(own_redis.url, "test")
    yield store
    await store.close()


@pytest.fixture
def turns(store: Store) -> TurnLog:
    return TurnLog(store, config.TurnLog())


@pytest.fixture
def feedback(store: Store) -> FeedbackLog:
    return FeedbackLog(store, config.Feedback())


@pytest.fixture
def votes(store: Store) -> VoteStream:
    return VoteStream(store)


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


@pytest.fixture
async def lease(store: Store) -> Lease:
    lease = Lease(store, "learner", 60)
    assert await lease.acquire()
    return lease


class Make:
    """Records as the server would write them."""

    @staticmethod
    def turn(turn_id: str, owner: str = "ann", millis: int | None = None) -> pb.TurnRecord:
        turn = pb.TurnRecord(
            turn_id=turn_id,
            conversation_id="c",
            owner=owner,
            created_at=now(),
            messages=[pb.Message(role=pb.ROLE_USER, content="hello")],
            prompt_token_ids=[1, 2, 3],
        )
        if millis is not None:
            turn.created_at.FromMilliseconds(millis)
        return turn

    @staticmethod
    def response(turn_id: str, index: int = 0, version: str = "base") -> pb.ResponseRecord:
        return pb.ResponseRecord(
            response_id=response_id(turn_id, index),
            index=index,
            text=f"answer {index}",
            token_ids=[4, 5],
            logprobs=[-0.5, -0.25],
            finish_reason=pb.FINISH_REASON_STOP,
            spans=[pb.VersionSpan(version=version)],
            finished_at=now(),
        )

    @staticmethod
    def thumb(
        turn_id: str, index: int = 0, rater: str = "ann", up: bool = True, retracted: bool = False
    ) -> pb.VoteEvent:
        event = pb.VoteEvent(
            turn_id=turn_id,
            response_id=response_id(turn_id, index),
            rater=rater,
            kind=pb.VOTE_KIND_THUMB,
            retracted=retracted,
            created_at=now(),
        )
        if not retracted:
            event.thumb = pb.THUMB_UP if up else pb.THUMB_DOWN
        return event

    @staticmethod
    def ranking(turn_id: str, *ranks: tuple[str, int], rater: str = "ann") -> pb.VoteEvent:
        items = [pb.RankedResponse(response_id=name, rank=rank) for name, rank in ranks]
        kind = pb.VOTE_KIND_RANKING
        return pb.VoteEvent(turn_id=turn_id, rater=rater, kind=kind, ranking=pb.Ranking(items=items), created_at=now())

    async def log(self, turns: TurnLog, turn_id: str, answers: int = 1, version: str = "base", **facts: Any) -> None:
        """A turn with its answers, logged."""
        for index in range(answers):
            status = await turns.append(self.turn(turn_id, **facts), self.response(turn_id, index, version))
            assert status == chat_pb2.LOG_STATUS_LOGGED

    async def vote(self, turns: TurnLog, feedback: FeedbackLog, count: int, start: int = 0) -> list[str]:
        """That many turns with a thumb each; returns the event ids."""
        ids = []
        for i in range(start, start + count):
            await self.log(turns, f"t{i}")
            ids.append((await feedback.append(self.thumb(f"t{i}"), f"key {i}")).event_id)
        return ids


@pytest.fixture
def make() -> Make:
    return Make()


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits for a condition, no longer than a deadline."""

    async def wait(condition: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - another process makes it true and sends no event
                await asyncio.sleep(0)

    return wait
