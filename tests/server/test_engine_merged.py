"""Full weights that change under running answers, against the same weights in transformers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from grpc import aio

from server.engine import Chunk
from server.engine_merged import Running, _by_answer
from tests.processes import Half, eventually, free_port
from tests.redis_process import RedisProcess
from thumbwheel.artifacts import model_digest, write_version
from thumbwheel.config import Config
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, models_pb2, models_pb2_grpc, rollout_pb2, rollout_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

NATS = 1e-4
"""Between two programs' float32."""
SEEDS = {"v1": 1, "v2": 2, "v3": 3, "v4": 4}
PLACES = 3
"""Fewer than there are versions."""


@dataclass
class Merged:
    """`python -m server` with merged weights, and what it should compute."""

    chat: chat_pb2_grpc.ChatServiceAsyncStub
    models: models_pb2_grpc.ModelServiceAsyncStub
    rollout: rollout_pb2_grpc.RolloutServiceAsyncStub
    turns: TurnLog
    references: dict[str, Any]
    half: Half

    async def go_live(self, name: str) -> None:
        if name == "base":
            await self.models.Rollback(models_pb2.RollbackRequest(reason="a test says so"), timeout=30)
        else:
            await self.models.Promote(models_pb2.PromoteRequest(name=name), timeout=30)

    async def record(self, turn_id: str) -> tuple[list[int], dict[int, pb.ResponseRecord]]:
        turn = await self.turns.get(turn_id)
        return list(turn.record.prompt_token_ids), dict(turn.responses)

    @torch.inference_mode()
    def expected(self, prompt: list[int], tokens: list[int], spans: list[tuple[str, int]]) -> torch.Tensor:
        """Log-probabilities of the tokens, each part computed by its version after the caches of those before."""
        cache, found = None, []
        ends = [first for _, first in spans[1:]] + [len(tokens)]
        read = [*prompt, *tokens]
        done = 0
        for (name, _), end in zip(spans, ends, strict=True):
            until = len(prompt) + end - 1  # the last token that was read before token `end` was sampled
            if until <= done:
                continue
            out = self.references[name](torch.tensor([read[done:until]]), past_key_values=cache, use_cache=True)
            found.append(out.logits[0].log_softmax(-1))
            cache, done = out.past_key_values, until
        rows = torch.cat(found)[len(prompt) - 1 :]
        return rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]


def question(content: str, max_tokens: int, n: int = 1, **sampling: Any) -> chat_pb2.ChatInput:
    message = pb.Message(role=pb.ROLE_USER, content=content)
    return chat_pb2.ChatInput(messages=[message], n=n, sampling=pb.Sampling(max_tokens=max_tokens, **sampling))


@pytest.fixture(scope="module")
async def merged(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, write_adapter: Callable[..., Path]
) -> AsyncIterator[Merged]:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("merged")
    redis = RedisProcess(folder)
    redis.start()
    references = {"base": AutoModelForCausalLM.from_pretrained(tiny_model)}
    store = await Store.open(redis.url, "default")
    registry, facts = Registry(store), {"base_digest": model_digest(tiny_model)}
    for name, seed in SEEDS.items():
        path, digest = write_version(
            folder / "versions", name, lambda target, seed=seed: write_adapter(target, seed=seed, size=0.1), facts
        )
        await registry.register(
            pb.VersionRecord(
                name=name, state=pb.VERSION_STATE_CANDIDATE, parent="base", path=path, manifest_sha256=digest
            )
        )
        references[name] = with_adapter(tiny_model, folder / "versions" / path)
    grpc_port, admin_port, http_port = free_port(), free_port(), free_port()
    sets = [
        "server.weights=merged", f"server.max_adapters={PLACES}",
        "server.threads=1", "server.max_sequences=16", "server.kv_cache_bytes=33554432",
        f"data_dir={folder}", f"model.path={tiny_model}", f"redis.url={redis.url}",
        f"server.grpc_port={grpc_port}", f"server.admin_port={admin_port}", f"server.http_port={http_port}",
        "server.web_port=0",
    ]  # fmt: skip
    half = Half("server", http_port, [word for item in sets for word in ("--set", item)], folder / "server.log")
    half.start()
    try:
        await half.ready()
        async with (
            aio.insecure_channel(f"127.0.0.1:{grpc_port}") as people,
            aio.insecure_channel(f"127.0.0.1:{admin_port}") as operators,
        ):
            yield Merged(
                chat_pb2_grpc.ChatServiceStub(people),
                models_pb2_grpc.ModelServiceStub(operators),
                rollout_pb2_grpc.RolloutServiceStub(operators),
                TurnLog(store, Config().turn_log),
                references,
                half,
            )
    finally:
        half.stop()
        await store.close()
        redis.stop()


def with_adapter(model: Path, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter)).merge_and_unload()


async def one(merged: Merged, ask: chat_pb2.ChatInput) -> tuple[str, pb.ResponseRecord, list[int]]:
    """Version of the receipt, record, prompt."""
    reply = await merged.chat.Chat(chat_pb2.ChatRequest(input=ask), timeout=60)
    receipt = reply.answers[0].receipt
    prompt, responses = await merged.record(receipt.turn_id)
    return receipt.version, responses[0], prompt


def spans_of(record: pb.ResponseRecord) -> list[tuple[str, int]]:
    return [(span.version, span.first_token) for span in record.spans]


def off(merged: Merged, prompt: list[int], record: pb.ResponseRecord, spans: list[tuple[str, int]]) -> float:
    """Largest difference, in nats, between what was recorded and what these spans would give."""
    expected = merged.expected(prompt, list(record.token_ids), spans)
    return float((torch.tensor(list(record.logprobs)) - expected).abs().max())


async def test_what_runs_goes_on_under_the_new_weights_from_the_token_that_the_record_names(merged: Merged) -> None:
    told: dict[tuple[int, int], list[tuple[str, int]]] = {}
    turns: dict[int, str] = {}
    begun = asyncio.Event()

    async def run(number: int, ask: chat_pb2.ChatInput) -> None:
        events = merged.chat.StreamChat(chat_pb2.StreamChatRequest(input=ask), timeout=60)
        async for event in events:
            match event.WhichOneof("event"):
                case "receipt":
                    turns[number] = event.receipt.turn_id
                    assert event.receipt.version == "base"
                case "delta":
                    begun.set()
                case "finish":
                    told[number, event.index] = [(span.version, span.first_token) for span in event.finish.spans]

    asks = [question(f"Tell me of {what}", 500, temperature=1, top_p=1) for what in ("wheels", "rivers", "salt")]
    asks.append(question("Two at once", 500, n=2, temperature=1, top_p=1))
    asks.append(question("Greedy", 500, n=2, temperature=0))
    running = [asyncio.create_task(run(number, ask)) for number, ask in enumerate(asks)]
    await begun.wait()
    await merged.go_live("v1")
    await merged.go_live("v2")
    await asyncio.gather(*running)
    crossed = 0
    for number, turn_id in turns.items():
        prompt, responses = await merged.record(turn_id)
        for index, record in responses.items():
            spans = spans_of(record)
            assert told[number, index] == (spans if len(spans) > 1 else [])
            assert off(merged, prompt, record, spans) < NATS
            crossed += [name for name, _ in spans] == ["base", "v1", "v2"] and 0 < spans[1][1] < spans[2][1]
            if len(spans) > 1 and 1 < spans[-1][1] < len(record.token_ids) - 1:
                for shift in (-1, 1):  # the token is that one and not its neighbour
                    moved = [*spans[:-1], (spans[-1][0], spans[-1][1] + shift)]
                    assert off(merged, prompt, record, moved) > 10 * NATS
    assert crossed >= 3
    await merged.go_live("base")
    await merged.go_live("base")
    # What crossed began as the base's and was computed by others: nothing of it may pass for the base's now.
    for turn_id in turns.values():
        prompt, responses = await merged.record(turn_id)
        read = prompt + list(responses[0].token_ids)[:-1]
        request = rollout_pb2.RolloutRequest(
            version="base",
            prompts=[rollout_pb2.TokenPrompt(token_ids=read)],
            sampling=pb.Sampling(max_tokens=1, temperature=1, top_p=1),
        )
        async for sample in merged.rollout.Rollout(request, timeout=60):
            expected = merged.expected(read, list(sample.token_ids), [("base", 0)])
            assert abs(float(expected[0]) - sample.logprobs[0]) < NATS


async def test_a_new_answer_is_the_new_weights_alone_and_the_base_comes_back_whole(merged: Merged) -> None:
    ask = question("The same words, long enough to be kept in the prefix cache. " * 4, 40, temperature=1, top_p=1)
    for step, name in enumerate(("base", "v1", "base", "v2", "base", "v1", "base")):
        if step:
            await merged.go_live(name)
        version, record, prompt = await one(merged, ask)
        assert version == name
        assert spans_of(record) == [(name, 0)]
        assert off(merged, prompt, record, [(name, 0)]) < NATS
        others = {"base", *SEEDS} - {name}
        assert all(off(merged, prompt, record, [(other, 0)]) > 10 * NATS for other in others)


async def test_a_sample_that_two_versions_made_is_no_sample(merged: Merged) -> None:
    request = rollout_pb2.RolloutRequest(
        version="base",
        prompts=[rollout_pb2.TokenPrompt(token_ids=[1, 2, 3])],
        sampling=pb.Sampling(max_tokens=1000, temperature=1, top_p=1),
        n=4,
    )
    samples = merged.rollout.Rollout(request, timeout=60)
    begun = merged.chat.StreamChat(chat_pb2.StreamChatRequest(input=question("After it", 500)), timeout=60)
    while (await begun.read()).WhichOneof("event") != "delta":
        pass
    await merged.go_live("v1")
    with pytest.raises(grpc.RpcError) as refused:
        _ = [sample async for sample in samples]
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "not live any more" in refused.value.details()
    begun.cancel()
    await merged.go_live("base")


async def test_only_the_live_version_answers(merged: Merged) -> None:
    ask = question("Hi", 4)
    ask.version = "v1"
    with pytest.raises(grpc.RpcError) as refused:
        await merged.chat.Chat(chat_pb2.ChatRequest(input=ask), timeout=60)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "server.weights" in refused.value.details()
    ask.version = "base"
    assert (await one(merged, ask))[0] == "base"


async def test_an_answer_outlives_the_place_of_the_version_that_began_it(merged: Merged) -> None:
    """And counts as one that crossed, whether it ends by itself or its caller leaves."""

    async def crossed() -> float:
        return await asyncio.to_thread(merged.half.metric, "thumbwheel_crossed_answers_total")

    await merged.go_live("v1")
    before = await crossed()
    ask = chat_pb2.StreamChatRequest(input=question("A long story", 1000, temperature=1, top_p=1))
    whole, left = (merged.chat.StreamChat(ask, timeout=60) for _ in range(2))
    turn_id = (await whole.read()).receipt.turn_id
    for call in (whole, left):
        while (await call.read()).WhichOneof("event") != "delta":
            pass
    for name in ("v2", "v3", "v4"):
        await merged.go_live(name)
    await left.read()
    left.cancel()
    while (event := await whole.read()) is not aio.EOF:
        last = event
    prompt, responses = await merged.record(turn_id)
    spans = spans_of(responses[0])
    assert [name for name, _ in spans] == ["v1", "v2", "v3", "v4"]
    assert list(last.finish.spans) == list(responses[0].spans)
    assert off(merged, prompt, responses[0], spans) < NATS

    async def both() -> bool:
        return await crossed() == before + 2

    await eventually(both, 5)


def chunk(index: int, tokens: int) -> Chunk:
    return Chunk(index, "", list(range(tokens)), [0.0] * tokens, None)


def test_a_change_is_told_with_the_chunk_that_passes_it() -> None:
    running = Running(greedy=False)
    assert running.tell(chunk(0, 3)).changes == ()
    running.changes += [("v1", {0: 5, 1: 1}), ("v2", {0: 5, 1: 9})]
    assert running.tell(chunk(0, 2)).changes == ()
    assert running.tell(chunk(0, 1)).changes == ((0, "v1"), (0, "v2"))
    assert running.tell(chunk(1, 4)).changes == ((1, "v1"),)
    assert running.tell(chunk(1, 6)).changes == ((5, "v2"),)
    assert running.tell(chunk(2, 1)).changes == ((0, "v1"), (0, "v2"))


def test_vllms_names_of_requests_are_understood() -> None:
    requests = {"t1": Running(greedy=False), "t2": Running(greedy=False)}
    sampled = {"t1-0a1b2c3d": 7, "0_t2-0a1b2c3d": 1, "1_t2-0a1b2c3d": 2, "warm-up-0a1b2c3d": 3}
    assert _by_answer(sampled, requests) == {"t1": {0: 7}, "t2": {0: 1, 1: 2}}
