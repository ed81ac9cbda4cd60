"""A canary on real sockets: whom it answers, and that people's votes alone decide what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from learner.canary import Judge
from server.engine import Engine
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.errors import EngineDead
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

MakeConfig = Callable[..., Config]
Publish = Callable[..., Awaitable[pb.VersionRecord]]

PEOPLE = 120
AT_ONCE = 40
SECONDS = 60.0
"""For a server to follow the registry, on a busy machine."""


def said(role: pb.Role.ValueType, content: str) -> pb.Message:
    return pb.Message(role=role, content=content)


async def chat(server: Any, messages: Sequence[pb.Message], user: str, version: str = "", n: int = 1) -> list[Any]:
    asked = chat_pb2.ChatInput(messages=messages, sampling=pb.Sampling(max_tokens=3), n=n, version=version)
    metadata = (("x-thumbwheel-user", user),)
    return list((await server.chat.Chat(chat_pb2.ChatRequest(input=asked), metadata=metadata)).answers)


async def opening(server: Any, person: int, **how: Any) -> chat_pb2.Answer:
    return (await chat(server, [said(pb.ROLE_USER, f"Question {person}?")], f"person {person}", **how))[0]


async def rate(server: Any, person: int, answer: chat_pb2.Answer, up: bool) -> None:
    name = answer.receipt.response_id
    thumb = pb.THUMB_UP if up else pb.THUMB_DOWN
    await server.feedback.Rate(
        feedback_pb2.RateRequest(response_id=name, idempotency_key=name, thumb=thumb),
        metadata=(("x-thumbwheel-user", f"person {person}"),),
    )


@asynccontextmanager
async def store_of(config: Config) -> AsyncIterator[Store]:
    store = await Store.open(config.redis.url, config.redis.namespace)
    try:
        yield store
    finally:
        await store.close()


async def put_on_trial(store: Store, name: str) -> None:
    """As a cycle's commit does."""
    lease = Lease(store, "learner", 60)
    assert await lease.acquire()
    batch = await VoteStream(store).freeze(lease, "cycle-1", "base", 1, 1000)
    await Registry(store).commit_cycle(
        lease, pb.CycleRecord(batch=batch, outcome="on_trial", version=name), name, trial=True
    )
    await lease.release()


async def answered_by(server: Any, name: str) -> list[int]:
    """The people whom this version answers."""
    # So many at once as find places.
    parts = [range(start, start + AT_ONCE) for start in range(0, PEOPLE, AT_ONCE)]
    answers = [answer for part in parts for answer in await asyncio.gather(*(opening(server, i) for i in part))]
    return [person for person, answer in enumerate(answers) if answer.receipt.version == name]


async def on_trial_here(server: Any, name: str) -> list[int]:
    """Waits until the canary answers; the people whom it answers."""
    async with asyncio.timeout(SECONDS):
        while not await answered_by(server, name):
            pass
        return await answered_by(server, name)  # some were asked before it came


@pytest.fixture(params=["scripted", "vllm"])
def any_engine(request: pytest.FixtureRequest) -> Engine:
    return ScriptedEngine() if request.param == "scripted" else request.getfixturevalue("engine")


async def test_a_share_of_conversations_is_the_canarys_to_their_ends(
    settings: MakeConfig, run_server: Any, publish: Publish, any_engine: Engine
) -> None:
    config = settings()
    record = await publish(config, "v1")
    try:
        async with store_of(config) as store, run_server(config, any_engine) as server:
            await put_on_trial(store, "v1")
            chosen = await on_trial_here(server, "v1")
            assert 0.1 < len(chosen) / PEOPLE < 0.3  # of a fifth
            person, other = chosen[0], next(person for person in range(PEOPLE) if person not in chosen)
            for who, version in ((person, "v1"), (other, "base")):
                answer = await opening(server, who)
                talk = [
                    said(pb.ROLE_USER, f"Question {who}?"),
                    said(pb.ROLE_ASSISTANT, answer.text or "..."),
                    said(pb.ROLE_USER, "And then?"),
                ]
                answers = await chat(server, talk, f"person {who}", n=2)
                assert [each.receipt.version for each in answers] == [version, version]
            # Who names a version gets that one.
            assert (await opening(server, person, version="base")).receipt.version == "base"
            listed = await server.models.ListVersions(models_pb2.ListVersionsRequest())
            assert listed.live == "base"
            await Registry(store).end_trial("v1", "test", promote=True)
            async with asyncio.timeout(SECONDS):
                while (await opening(server, other)).receipt.version != "v1":
                    pass
    finally:
        await any_engine.unload(record.adapter_id)


@pytest.mark.parametrize(("liked", "after"), [(False, "base"), (True, "v1")], ids=["disliked", "liked"])
async def test_votes_over_the_api_decide_a_trial(
    settings: MakeConfig, run_server: Any, publish: Publish, liked: bool, after: str
) -> None:
    config = settings()
    await publish(config, "v1")
    release = config.release.model_copy(update={"mode": "canary", "share": 0.5, "ratings": 40})
    config = config.model_copy(update={"release": release})
    async with store_of(config) as store, run_server(config, ScriptedEngine()) as server:
        registry = Registry(store)
        log, feedback = TurnLog(store, config.turn_log), FeedbackLog(store, config.feedback)
        judge = Judge(registry, VoteStream(store), log, feedback, release)
        await put_on_trial(store, "v1")
        await on_trial_here(server, "v1")
        assert await judge.look()
        for person in range(PEOPLE):
            answer = await opening(server, person)
            await rate(server, person, answer, liked or answer.receipt.version == "base")
        assert not await judge.look()
        assert await registry.canary() is None
        assert (await registry.live()).name == after
        async with asyncio.timeout(SECONDS):
            while {(await opening(server, person)).receipt.version for person in range(10)} != {after}:
                pass
        state = pb.VERSION_STATE_LIVE if liked else pb.VERSION_STATE_ROLLED_BACK
        assert (await registry.get("v1")).state == state


async def test_a_canary_that_the_engine_dies_under_is_taken_back(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    """Else the next engine would be made to load it again, and people's answers would end with it again."""
    config, engine = settings(), ScriptedEngine()
    await publish(config, "v1")
    running = run_server(config, engine)
    async with store_of(config) as store:
        server = await running.__aenter__()
        await put_on_trial(store, "v1")
        await on_trial_here(server, "v1")
        engine.die()
        async with asyncio.timeout(SECONDS):
            await asyncio.wait((server.task,))
        with pytest.raises(EngineDead):
            await running.__aexit__(None, None, None)
        taken_back = await Registry(store).get("v1")
        assert taken_back.state == pb.VERSION_STATE_ROLLED_BACK
        assert "the engine died" in taken_back.reasons[-1]
        assert (await Registry(store).live()).name == "base"
