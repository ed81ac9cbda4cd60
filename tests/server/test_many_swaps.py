"""Thousands of swaps under load: every answer is its version's own, none fails, and nothing piles up."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc import aio

from tests.redis_process import RedisProcess
from tests.rough.target import target
from thumbwheel.artifacts import model_digest, write_version
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, models_pb2, models_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

VERSIONS = 10
"""More than there are places for, so that they are loaded and unloaded all the time."""
PLACES = 6
"""One for every stream that ends on an old version, the live one, and the one to come."""
STREAMS = 4
QUESTIONS = ("Why do wheels turn?", "What is salt?", "Name a river.")
GROWTH = 1.02


def question(content: str, version: str = "") -> chat_pb2.StreamChatRequest:
    message = pb.Message(role=pb.ROLE_USER, content=content)
    sampling = pb.Sampling(max_tokens=12, temperature=0)
    return chat_pb2.StreamChatRequest(input=chat_pb2.ChatInput(messages=[message], sampling=sampling, version=version))


async def answer(chat: chat_pb2_grpc.ChatServiceAsyncStub, content: str, version: str = "") -> tuple[str, str]:
    """Version and text of a whole answer."""
    by, text, finished = "", "", False
    async for event in chat.StreamChat(question(content, version), timeout=6):
        match event.WhichOneof("event"):
            case "receipt":
                by = event.receipt.version
            case "delta":
                text += event.delta
            case "finish":
                finished = True
    assert finished
    return by, text


@pytest.mark.parametrize("swaps", [40, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_every_answer_is_its_versions_own(
    swaps: int, tmp_path: Path, own_redis: RedisProcess, tiny_model: Path, write_adapter: Callable[..., Path]
) -> None:
    store = await Store.open(own_redis.url, "default")
    names = [f"v{number}" for number in range(VERSIONS)]
    for seed, name in enumerate(names):
        path, digest = write_version(
            tmp_path / "versions", name, lambda folder, seed=seed: write_adapter(folder, seed=seed, size=0.12),
            {"base_digest": model_digest(tiny_model)},
        )  # fmt: skip
        await Registry(store).register(
            pb.VersionRecord(
                name=name, state=pb.VERSION_STATE_CANDIDATE, parent="base", path=path, manifest_sha256=digest
            )
        )
    await store.close()
    async with (
        target(tmp_path, tiny_model, own_redis.url, f"server.max_adapters={PLACES}") as server,
        aio.insecure_channel(server.address) as people,
        aio.insecure_channel(server.admin) as operators,
    ):
        chat, models = chat_pb2_grpc.ChatServiceStub(people), models_pb2_grpc.ModelServiceStub(operators)
        golden = {
            (name, content): (await answer(chat, content, name))[1]
            for name in ("base", *names) for content in QUESTIONS
        }  # fmt: skip
        for content in QUESTIONS:
            assert len({golden[name, content] for name in ("base", *names)}) == VERSIONS + 1

        done, came = asyncio.Event(), asyncio.Condition()
        seen: dict[str, int] = {}

        async def visit(contents: itertools.cycle[str]) -> None:
            while not done.is_set():
                content = next(contents)
                by, text = await answer(chat, content)
                assert text == golden[by, content], by
                async with came:
                    seen[by] = seen.get(by, 0) + 1
                    came.notify_all()

        async def operate() -> None:
            memory: dict[int, int] = {}
            for number in range(swaps):
                if number == swaps // 10:
                    memory = server.memory()
                name = names[number % VERSIONS]
                before = seen.get(name, 0)
                await models.Promote(models_pb2.PromoteRequest(name=name), timeout=30)
                async with came:  # otherwise most versions are gone before anybody is answered by them
                    await came.wait_for(lambda name=name, before=before: seen.get(name, 0) > before)
                if number % 50 == 49:
                    await models.Rollback(models_pb2.RollbackRequest(reason="a test says so"), timeout=30)
            done.set()
            growth = {pid: server.memory()[pid] / before for pid, before in memory.items()}
            print(f"{sum(seen.values())} answers by {len(seen)} versions; {growth=}")
            if swaps >= 1000:
                assert max(growth.values()) < GROWTH

        async with asyncio.TaskGroup() as tasks:
            for number in range(STREAMS):
                tasks.create_task(visit(itertools.cycle(QUESTIONS[number % 3 :] + QUESTIONS[: number % 3])))
            tasks.create_task(operate())
        assert seen.keys() >= set(names)
        assert not server.complaints()
