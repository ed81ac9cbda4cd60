"""Versions over the API, and the swap under running streams, on the scripted engine and on vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import REGISTRY

from server.engine import Engine
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import chat_pb2, models_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import (
    VERSION_STATE_CANDIDATE,
    VERSION_STATE_LIVE,
    VERSION_STATE_RETIRED,
    VERSION_STATE_ROLLED_BACK,
    VERSION_STATE_TRAINING,
)

MakeConfig = Callable[..., Config]
Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]
Until = Callable[..., Awaitable[None]]
RegistryOf = Callable[[Config], AbstractAsyncContextManager[Registry]]


def ask(content: str = "Tell me.", version: str = "", **sampling: Any) -> chat_pb2.ChatInput:
    return chat_pb2.ChatInput(
        messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content=content)],
        sampling=record_pb2.Sampling(**sampling),
        version=version,
    )


async def answer(server: Any, **fields: Any) -> chat_pb2.Answer:
    return (await server.chat.Chat(chat_pb2.ChatRequest(input=ask(**fields)))).answers[0]


async def promote(server: Any, name: str) -> models_pb2.PromoteResponse:
    return await server.models.Promote(models_pb2.PromoteRequest(name=name, reason="test"))


async def roll_back(server: Any) -> models_pb2.RollbackResponse:
    return await server.models.Rollback(models_pb2.RollbackRequest(reason="test"))


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(aio.AioRpcError) as refusal:
        await call
    return refusal.value.code()


async def test_versions_are_listed_page_by_page_newest_first(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    for number in range(3):
        await publish(config, f"v{number}", seed=number)
    await publish(config, "cycle-1", seed=9, state=VERSION_STATE_TRAINING)
    async with run_server(config, ScriptedEngine()) as server:
        page = await server.models.ListVersions(models_pb2.ListVersionsRequest(page_size=3))
        assert [version.name for version in page.versions] == ["v2", "v1", "v0"]
        assert page.live == "base"
        rest = await server.models.ListVersions(models_pb2.ListVersionsRequest(page_token=page.next_page_token))
        assert [version.name for version in rest.versions] == ["base"]
        assert rest.next_page_token == ""
        everything = await server.models.ListVersions(models_pb2.ListVersionsRequest(include_training=True))
        assert "cycle-1" in [version.name for version in everything.versions]
        one = await server.models.GetVersion(models_pb2.GetVersionRequest(name="v1"))
        assert one.version.state == VERSION_STATE_CANDIDATE
        invalid, missing = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
        assert await code_of(server.models.ListVersions(models_pb2.ListVersionsRequest(page_size=1001))) is invalid
        assert await code_of(server.models.ListVersions(models_pb2.ListVersionsRequest(page_token="x"))) is invalid
        assert await code_of(server.models.GetVersion(models_pb2.GetVersionRequest())) is invalid
        assert await code_of(server.models.GetVersion(models_pb2.GetVersionRequest(name="nobody"))) is missing


async def test_promote_and_rollback_answer_when_this_server_has_moved(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    await publish(config, "v1")
    async with run_server(config, ScriptedEngine()) as server:
        promoted = await promote(server, "v1")
        assert (promoted.live.name, promoted.live.state, promoted.previous) == ("v1", VERSION_STATE_LIVE, "base")
        assert (await answer(server)).receipt.version == "v1"
        assert REGISTRY.get_sample_value("thumbwheel_live_version_info", {"version": "v1"}) == 1
        assert REGISTRY.get_sample_value("thumbwheel_live_version_info", {"version": "base"}) is None
        back = await roll_back(server)
        assert (back.live.name, back.previous) == ("base", "v1")
        assert (await answer(server)).receipt.version == "base"
        taken = await server.models.GetVersion(models_pb2.GetVersionRequest(name="v1"))
        assert taken.version.state == VERSION_STATE_ROLLED_BACK
        assert list(taken.version.reasons) == ["test"]
        assert await code_of(roll_back(server)) in (
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.FAILED_PRECONDITION,
        )


async def test_what_must_not_go_live_does_not(settings: MakeConfig, run_server: Any, publish: Publish) -> None:
    config = settings()
    await publish(config, "nan", tensors=lambda tensors: next(iter(tensors.values())).fill(float("nan")))
    await publish(config, "other", base="0" * 64)
    await publish(config, "cycle-1", state=VERSION_STATE_TRAINING)
    async with run_server(config, ScriptedEngine()) as server:
        assert await code_of(promote(server, "nobody")) is grpc.StatusCode.NOT_FOUND
        assert await code_of(promote(server, "")) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code_of(promote(server, "cycle-1")) is grpc.StatusCode.INVALID_ARGUMENT
        for name in ("nan", "other"):
            assert await code_of(promote(server, name)) is grpc.StatusCode.FAILED_PRECONDITION
        long = models_pb2.PromoteRequest(name="nan", reason="x" * 2001)
        assert await code_of(server.models.Promote(long)) is grpc.StatusCode.INVALID_ARGUMENT
        assert (await server.models.ListVersions(models_pb2.ListVersionsRequest())).live == "base"


async def test_pins_answer_beside_the_live_version(settings: MakeConfig, run_server: Any, publish: Publish) -> None:
    config = settings()
    await publish(config, "v1")
    await publish(config, "cycle-1", state=VERSION_STATE_TRAINING)
    async with run_server(config, ScriptedEngine()) as server:
        assert (await answer(server, version="v1")).receipt.version == "v1"
        assert (await answer(server)).receipt.version == "base"
        assert await code_of(answer(server, version="cycle-1")) is grpc.StatusCode.INVALID_ARGUMENT
        assert await code_of(answer(server, version="nobody")) is grpc.StatusCode.NOT_FOUND


async def test_watch_sends_the_live_version_and_then_every_change(
    settings: MakeConfig, run_server: Any, publish: Publish
) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine()) as server:
        watch = server.models.WatchVersions(models_pb2.WatchVersionsRequest())
        first = await watch.read()
        assert (first.version.name, first.live) == ("base", "base")
        await publish(config, "v1")
        await promote(server, "v1")
        await roll_back(server)
        seen = []
        async with asyncio.timeout(10):
            while ("base", VERSION_STATE_LIVE, "base") not in seen:
                change = await watch.read()
                seen.append((change.version.name, change.version.state, change.live))
        assert seen == [
            ("v1", VERSION_STATE_CANDIDATE, "base"),
            ("base", VERSION_STATE_RETIRED, "v1"),
            ("v1", VERSION_STATE_LIVE, "v1"),
            ("v1", VERSION_STATE_ROLLED_BACK, "base"),
            ("base", VERSION_STATE_LIVE, "base"),
        ]
        watch.cancel()


async def test_a_call_that_queued_across_a_swap_is_answered_by_the_new_version(
    settings: MakeConfig, run_server: Any, publish: Publish, until: Until
) -> None:
    config = settings(max_sequences=1)
    await publish(config, "v1")
    engine = ScriptedEngine()
    async with run_server(config, engine) as server:
        engine.resume.clear()
        first = server.chat.Chat(chat_pb2.ChatRequest(input=ask()))
        await until(lambda: bool(engine.running))
        second = server.chat.Chat(chat_pb2.ChatRequest(input=ask()))
        await until(lambda: REGISTRY.get_sample_value("thumbwheel_queued_answers") == 1)
        await promote(server, "v1")
        engine.resume.set()
        assert (await first).answers[0].receipt.version == "base"
        assert (await second).answers[0].receipt.version == "v1"


async def test_live_stays_live_over_a_restart(settings: MakeConfig, run_server: Any, publish: Publish) -> None:
    config = settings()
    await publish(config, "v1")
    async with run_server(config, ScriptedEngine()) as server:
        await promote(server, "v1")
    async with run_server(config, ScriptedEngine()) as server:
        assert (await answer(server)).receipt.version == "v1"


class Stream:
    """One streamed answer, read to its end in a task."""

    def __init__(self, server: Any, **fields: Any) -> None:
        self.version = ""
        self.text = ""
        self.finish: chat_pb2.Finish | None = None
        self._call = server.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask(**fields)))
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._call:
            match event.WhichOneof("event"):
                case "receipt":
                    self.version = event.receipt.version
                case "delta":
                    assert event.delta
                    self.text += event.delta
                case _:
                    self.finish = event.finish


async def test_a_swap_on_vllm_leaves_running_streams_on_theirs(
    settings: MakeConfig, run_server: Any, publish: Publish, engine: Engine, until: Until, registry_of: RegistryOf
) -> None:
    config = settings()
    record = await publish(config, "swap-v1", size=0.12)
    try:
        async with run_server(config, engine) as server:
            before = await answer(server, temperature=0, max_tokens=24)
            running = [Stream(server, content=f"Story {i}", max_tokens=200, seed=i) for i in range(4)]
            await until(lambda: all(stream.text for stream in running))
            async with registry_of(config) as registry:  # as the learner does it, beside this server
                await registry.promote("swap-v1", "gate passed")
            new = Stream(server, content="New", max_tokens=20)
            async with asyncio.timeout(60):
                await new.task
                while new.version != "swap-v1":
                    new = Stream(server, content="New", max_tokens=20)
                    await new.task
            unfinished = [stream for stream in running if stream.finish is None]
            assert unfinished, "the swap must fall into running streams for this test to show anything"
            for stream in running:
                async with asyncio.timeout(60):
                    await stream.task
                assert stream.version == "base"
                assert stream.finish is not None
                assert stream.finish.usage.completion_tokens == 200 or (
                    stream.finish.reason == record_pb2.FINISH_REASON_STOP
                )
            after = await answer(server, temperature=0, max_tokens=24)
            assert after.receipt.version == "swap-v1"
            assert after.text != before.text, "the new weights answer"

            busy = Stream(server, content="More", max_tokens=200)
            await until(lambda: bool(busy.text))
            began = time.monotonic()
            back = await roll_back(server)
            seconds = time.monotonic() - began
            assert back.live.name == "base"
            assert seconds < 1, f"rollback took {seconds:.2f} s"
            assert (await answer(server, temperature=0, max_tokens=24)).text == before.text
            await busy.task
            assert busy.version == "swap-v1"
            assert busy.finish is not None
    finally:
        await engine.unload(record.adapter_id)


async def test_cancelling_on_vllm_aborts_at_once(
    settings: MakeConfig, run_server: Any, engine: Any, until: Until
) -> None:
    async with run_server(settings(), engine) as server:
        call = server.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask(max_tokens=1000)))
        await call.read()
        assert (await call.read()).delta
        call.cancel()
        await until(lambda: not engine._llm.output_processor.request_states, seconds=5)
        late = server.chat.Chat(chat_pb2.ChatRequest(input=ask(max_tokens=1000)), timeout=0.5)
        assert await code_of(late) is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not engine._llm.output_processor.request_states, seconds=5)
        assert REGISTRY.get_sample_value("thumbwheel_running_answers", {"source": "chat"}) == 0


async def test_deltas_on_vllm_are_whole_characters_and_add_up(
    settings: MakeConfig, run_server: Any, engine: Engine
) -> None:
    """A random model writes many broken bytes, which is what puts the detokenizer to the test."""
    async with run_server(settings(), engine) as server:
        sampling = {"max_tokens": 120, "temperature": 1.5, "seed": 3}
        events = [event async for event in server.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask(**sampling)))]
        whole = await answer(server, **sampling)
    text = "".join(event.delta for event in events)
    assert text == whole.text
    assert sum(event.HasField("delta") for event in events) > 20


async def test_stop_strings_on_vllm_end_the_answer_and_are_not_in_it(
    settings: MakeConfig, run_server: Any, engine: Engine
) -> None:
    async with run_server(settings(), engine) as server:
        full = await answer(server, temperature=0, max_tokens=60)
        stop = full.text[20:23]
        cut = await answer(server, temperature=0, max_tokens=60, stop=[stop])
    assert cut.text == full.text[: full.text.index(stop)]
    assert cut.finish.reason == record_pb2.FINISH_REASON_STOP


async def test_the_largest_seed_with_several_answers_is_accepted(
    settings: MakeConfig, run_server: Any, engine: Engine
) -> None:
    async with run_server(settings(), engine) as server:
        request = ask(max_tokens=5, seed=2**64 - 1)
        request.n = 3
        assert len((await server.chat.Chat(chat_pb2.ChatRequest(input=request))).answers) == 3
