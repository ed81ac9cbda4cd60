"""The wheel, whole: real server, learner and store as processes of their own, on a tiny random model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from grpc import aio

from tests.otlp import receiving
from tests.processes import Half, eventually, free_port
from tests.quantised import write_int8
from thumbwheel_client.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from thumbwheel_client.v1 import record_pb2 as pb

# A random model pleases nobody and knows nothing, so the bars of reward model and gate are on the floor here.
SETTINGS = (
    "learner.min_votes=48", "learner.reward_model.min_auc=0", "learner.gate.min_win_rate=0",
    "learner.gate.win_rate_margin=1", "learner.gate.min_length_ratio=0", "learner.gate.max_length_ratio=1000",
    "learner.gate.min_judge_votes=1", "learner.gate.max_kl=1000", "learner.gate.prompts=4",
    "learner.ppo.fresh_iterations=1", "learner.ppo.rollouts=16", "learner.ppo.kl_budget=1000", "learner.poll=0.2",
    "learner.lease=2", "learner.niceness=0", "server.max_update_norm=1000", "server.drain=5",
)  # fmt: skip


@dataclass
class Wheel:
    server: Half
    learner: Half
    redis: Any
    chat: chat_pb2_grpc.ChatServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub
    models: models_pb2_grpc.ModelServiceAsyncStub

    async def ask(self, prompt: str, tokens: int = 12) -> chat_pb2.Answer:
        message = pb.Message(role=pb.ROLE_USER, content=prompt)
        request = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=tokens, seed=len(prompt)))
        reply = await self.chat.Chat(chat_pb2.ChatRequest(input=request), timeout=60)
        return reply.answers[0]

    async def rate(self, number: int) -> None:
        answer = await self.ask(f"Question number {number}?")
        assert answer.finish.log_status == chat_pb2.LOG_STATUS_LOGGED
        up = sum(map(ord, answer.text)) % 2
        request = feedback_pb2.RateRequest(
            response_id=answer.receipt.response_id,
            idempotency_key=f"key {number}",
            thumb=pb.THUMB_UP if up else pb.THUMB_DOWN,
        )
        await self.feedback.Rate(request, timeout=30, wait_for_ready=True)

    async def turn(self) -> pb.VersionRecord:
        """Enough votes for a cycle, and the version that it makes, live."""
        for start in range(0, 56, 8):
            await asyncio.gather(*(self.rate(number) for number in range(start, start + 8)))
        async for change in self.models.WatchVersions(models_pb2.WatchVersionsRequest(), timeout=240):
            if change.live != "base" and change.version.name == change.live:
                break
        return change.version


@pytest.fixture
def halves(tmp_path: Path, tiny_model: Path, own_redis: Any) -> Iterator[tuple[Half, Half, Any]]:
    redis = own_redis
    ports = [free_port() for _ in range(4)]
    settings = [
        *SETTINGS, f"data_dir={tmp_path}", f"model.path={tiny_model}", f"redis.url={redis.url}",
        f"server.grpc_port={ports[0]}", f"server.http_port={ports[1]}", f"learner.http_port={ports[2]}",
        f"server.admin_port={ports[3]}", "server.web_port=0",
    ]  # fmt: skip
    arguments = [word for item in settings for word in ("--set", item)]
    server = Half("server", ports[1], arguments, tmp_path / "server.log")
    learner = Half("learner", ports[2], arguments, tmp_path / "learner.log")
    yield server, learner, redis
    learner.stop()
    server.stop()


@asynccontextmanager
async def turning(server: Half, learner: Half, redis: Any) -> AsyncIterator[Wheel]:
    server.start()
    await server.ready()
    learner.start()
    settings = dict(word.split("=", 1) for word in server.arguments if "=" in word)
    options = [("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 500)]
    async with (
        aio.insecure_channel(f"127.0.0.1:{settings['server.grpc_port']}", options=options) as public,
        aio.insecure_channel(f"127.0.0.1:{settings['server.admin_port']}", options=options) as admin,
    ):
        yield Wheel(
            server, learner, redis, chat_pb2_grpc.ChatServiceStub(public),
            feedback_pb2_grpc.FeedbackServiceStub(public), models_pb2_grpc.ModelServiceStub(admin),
        )  # fmt: skip


async def stream_until(wheel: Wheel, done: asyncio.Event, seen: list[tuple[str, bool]]) -> None:
    """Keeps a stream running; notes (version, complete) of each."""
    while not done.is_set():
        message = pb.Message(role=pb.ROLE_USER, content="Tell me a story.")
        request = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=64))
        version, finish, text = "", None, ""
        async for event in wheel.chat.StreamChat(chat_pb2.StreamChatRequest(input=request), timeout=60):
            if event.HasField("receipt"):
                assert not text
                version = event.receipt.version
            elif event.HasField("finish"):
                finish = event.finish
            else:
                text += event.delta
        whole = finish is not None and (
            finish.reason == pb.FINISH_REASON_STOP
            or (finish.reason == pb.FINISH_REASON_LENGTH and finish.usage.completion_tokens == 64)
        )
        seen.append((version, whole))


async def test_votes_become_a_version_that_is_swapped_in_under_running_streams(
    halves: tuple[Half, Half, Any],
) -> None:
    async with turning(*halves) as wheel:
        done = asyncio.Event()
        seen: list[tuple[str, bool]] = []
        streams = [asyncio.create_task(stream_until(wheel, done, seen)) for _ in range(3)]
        version = await wheel.turn()
        assert version.parent == "base"
        assert version.metrics["votes"] >= 48
        assert {"reward_model_auc", "kl_nats_per_sequence", "win_rate", "competence"} <= set(version.metrics)

        await eventually(lambda: wheel.server.metric("thumbwheel_live_version_info", version=version.name), 10)
        assert (await wheel.ask("And now?")).receipt.version == version.name
        await eventually(lambda: any(name == version.name for name, _ in seen), 30)
        done.set()
        await asyncio.gather(*streams)
        assert {name for name, _ in seen} == {"base", version.name}
        assert all(whole for _, whole in seen)

        started = monotonic()
        reply = await wheel.models.Rollback(models_pb2.RollbackRequest(reason="a test"), timeout=10)
        assert monotonic() - started < 1
        assert (reply.live.name, reply.previous) == ("base", version.name)
        assert (await wheel.ask("And now again?")).receipt.version == "base"


async def test_what_is_served_in_fewer_bits_learns_in_full_precision(
    halves: tuple[Half, Half, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """What the rounded weights amount to stands in for them: not every CPU can compute with those themselves."""
    served = tmp_path / "amounts to"
    write_int8(tiny_model, tmp_path / "rounded", served)
    sets = ("--set", f"model.path={served}", "--set", f"model.full_precision={tiny_model}")
    for half in halves[:2]:
        half.arguments = [*half.arguments, *sets]
    async with turning(*halves) as wheel:
        version = (await wheel.turn()).name
        await eventually(lambda: wheel.server.metric("thumbwheel_live_version_info", version=version), 10)
        assert (await wheel.ask("And now?")).receipt.version == version


async def test_one_trace_leads_from_a_chat_to_the_version_that_it_helped_to_train(
    halves: tuple[Half, Half, Any],
) -> None:
    server, learner, _ = halves
    chat_trace, vote_trace = "c" * 32, "d" * 32
    with receiving() as receiver:
        for half in (server, learner):
            half.arguments = [*half.arguments, "--set", f"tracing.endpoint={receiver.endpoint}"]
        async with turning(*halves) as wheel:
            message = pb.Message(role=pb.ROLE_USER, content="A question that is followed?")
            request = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=12))
            caller = (("traceparent", f"00-{chat_trace}-{'1' * 16}-01"),)
            reply = await wheel.chat.Chat(chat_pb2.ChatRequest(input=request), metadata=caller, timeout=60)
            vote = feedback_pb2.RateRequest(
                response_id=reply.answers[0].receipt.response_id, idempotency_key="followed", thumb=pb.THUMB_UP
            )
            voter = (("traceparent", f"00-{vote_trace}-{'1' * 16}-01"),)
            await wheel.feedback.Rate(vote, metadata=voter, timeout=30)
            version = (await wheel.turn()).name
            await eventually(lambda: server.metric("thumbwheel_live_version_info", version=version), 10)
            # The record is committed before the cycle has ended, and a learner that is stopped tells what has.
            await eventually(lambda: learner.metric("thumbwheel_learner_cycles_total", outcome="released"), 10)
            await eventually(lambda: receiver.named("cycle"), 20)
        await asyncio.gather(asyncio.to_thread(learner.stop), asyncio.to_thread(server.stop))
    assert (server.exit_code, learner.exit_code) == (0, 0)

    (swap,) = (span for span in receiver.named("swap") if span.facts["thumbwheel.version"] == version)
    cycle = receiver.named("cycle")[0]
    assert (swap.service, cycle.service) == ("thumbwheel-server", "thumbwheel-learner")
    assert swap.links == (cycle.trace_id,)
    assert cycle.facts["thumbwheel.version"] == version
    assert cycle.facts["thumbwheel.outcome"] == "released"
    assert {chat_trace, vote_trace} <= set(cycle.links)
    assert len(cycle.links) <= 128
    stages = [span for span in receiver.spans if span.parent == cycle.span_id and span.service == cycle.service]
    assert [span.name for span in stages] == ["collecting", "reward_model", "training", "gate", "committing"]
    sampled = receiver.named("thumbwheel.v1.RolloutService/Rollout")
    assert sampled
    assert {span.parent for span in sampled} == {cycle.span_id}
    assert not any(b"is followed" in body or reply.answers[0].text.encode() in body for body in receiver.raw)
