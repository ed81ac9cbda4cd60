"""The learner's samples: complete, reproducible, and never in anybody's way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from prometheus_client import REGISTRY

from server.engine_scripted import EOS, ScriptedEngine
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2, record_pb2, rollout_pb2

MakeConfig = Callable[..., Config]
Until = Callable[..., Awaitable[None]]


def rollout(*prompts: Sequence[int], n: int = 1, version: str = "base", **sampling: Any) -> rollout_pb2.RolloutRequest:
    return rollout_pb2.RolloutRequest(
        version=version,
        prompts=[rollout_pb2.TokenPrompt(token_ids=prompt) for prompt in prompts],
        sampling=record_pb2.Sampling(**sampling),
        n=n,
    )


def chat(n: int = 1) -> chat_pb2.ChatRequest:
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    return chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], n=n))


def running(source: str) -> float | None:
    return REGISTRY.get_sample_value("thumbwheel_running_answers", {"source": source})


async def test_every_sample_comes_once_and_the_same_seed_gives_the_same(settings: MakeConfig, run_server: Any) -> None:
    request = rollout(b"one", b"two", b"three", n=4, seed=10, max_tokens=200)
    async with run_server(settings(), ScriptedEngine()) as server:
        samples = {(s.prompt_index, s.sample_index): s async for s in server.rollout.Rollout(request)}
        again = {(s.prompt_index, s.sample_index): s async for s in server.rollout.Rollout(request)}
    assert set(samples) == {(i, j) for i in range(3) for j in range(4)}
    assert samples == again
    assert len({s.text for s in samples.values()}) == 12, "every sample has a seed of its own"
    for sample in samples.values():
        assert sample.text.encode() == bytes(sample.token_ids[:-1])
        assert sample.token_ids[-1] == EOS
        assert len(sample.logprobs) == len(sample.token_ids)
        assert sample.finish_reason == record_pb2.FINISH_REASON_STOP


async def test_sample_j_of_prompt_i_uses_the_documented_seed(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        [*many] = [s async for s in server.rollout.Rollout(rollout(b"a", b"b", n=3, seed=100, max_tokens=200))]
        [one] = [s async for s in server.rollout.Rollout(rollout(b"b", seed=100 + 1 * 3 + 2, max_tokens=200))]
    [same] = [s for s in many if (s.prompt_index, s.sample_index) == (1, 2)]
    assert one.text == same.text


async def test_chat_gets_its_places_at_once_and_no_sample_is_lost(
    settings: MakeConfig, run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 30)
    config = settings(max_sequences=6, rollout_sequences=5, rollout_sequences_busy=1)
    async with run_server(config, engine) as server:
        engine.resume.clear()
        call = server.rollout.Rollout(rollout(*[bytes([65 + i]) for i in range(12)], max_tokens=40))
        await until(lambda: running("rollout") == 5)
        answer = server.chat.Chat(chat(n=4))
        await until(lambda: running("chat") == 4)
        assert running("rollout") == 1
        await until(lambda: len(engine.running) == 2)
        engine.resume.set()
        assert len((await answer).answers) == 4
        samples = [sample async for sample in call]
    assert sorted(sample.prompt_index for sample in samples) == list(range(12))
    assert all(sample.text == "x" * 30 for sample in samples), "a sample that gave way starts from its beginning"


async def test_cancelling_ends_all_samples(settings: MakeConfig, run_server: Any, until: Until) -> None:
    engine = ScriptedEngine()
    config = settings(rollout_sequences=16)
    async with run_server(config, engine) as server:
        engine.resume.clear()
        call = server.rollout.Rollout(rollout(*[b"x"] * 40))
        await until(lambda: len(engine.running) == 16)
        call.cancel()
        await until(lambda: not engine.running and running("rollout") == 0)


BAD = {
    "version": rollout(b"x", version=""),
    "prompts": rollout(),
    "prompts[1].token_ids": rollout(b"x", b""),
    "prompts[0].token_ids": rollout(b"x" * 4000, max_tokens=200),
    "prompts[2].token_ids": rollout(b"x", b"x", [EOS + 1]),
    "sampling.temperature": rollout(b"x", temperature=3),
}


async def test_bad_requests_are_refused_with_their_field(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        for field, request in BAD.items():
            with pytest.raises(aio.AioRpcError) as refusal:
                async for _ in server.rollout.Rollout(request):
                    pass
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            status = status_pb2.Status.FromString(dict(refusal.value.trailing_metadata())["grpc-status-details-bin"])
            bad = error_details_pb2.BadRequest()
            assert status.details[0].Unpack(bad)
            assert bad.field_violations[0].field == field


async def test_an_unknown_version_is_not_found(settings: MakeConfig, run_server: Any) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as refusal:
            async for _ in server.rollout.Rollout(rollout(b"x", version="nobody")):
                pass
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_an_error_of_one_sample_ends_the_call_and_the_others(
    settings: MakeConfig, run_server: Any, until: Until
) -> None:
    def script(_: Any, prompt: str, index: int) -> str:
        if prompt == "bad":
            raise KeyError(prompt)
        return "x" * 200

    engine = ScriptedEngine(script=script, token_seconds=0.01)
    async with run_server(settings(), engine) as server:
        with pytest.raises(aio.AioRpcError) as refusal:
            async for _ in server.rollout.Rollout(rollout(b"good", b"bad", b"good")):
                pass
        assert refusal.value.code() is grpc.StatusCode.INTERNAL
        await until(lambda: not engine.running and running("rollout") == 0)


async def test_a_drain_does_not_wait_for_rollouts_and_tells_the_learner_to_come_again(
    settings: MakeConfig, run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine()
    async with run_server(settings(drain=20), engine) as server:
        engine.resume.clear()
        call = server.rollout.Rollout(rollout(*[b"x"] * 4))
        await until(lambda: len(engine.running) == 4)
        server.stop.set()
        async with asyncio.timeout(10):
            with pytest.raises(aio.AioRpcError) as end:
                await call.read()
            await server.task
        assert end.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not engine.running
