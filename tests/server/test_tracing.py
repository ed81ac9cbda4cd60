"""What a server tells of its requests, to whoever is asked to follow them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc import aio

from server.engine_scripted import ScriptedEngine
from tests.otlp import Receiver, receiving
from tests.server.web import ask, web
from thumbwheel.config import Config, Tracing
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, record_pb2

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = (("traceparent", f"00-{TRACE}-{SPAN}-01"),)
VOTER = (("traceparent", f"00-{TRACE[::-1]}-{SPAN}-01"),)
SECRETS = ("What did the doctor say?", "somebody", "my comment", "a better answer")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


def traced(config: Config, receiver: Receiver) -> Config:
    return config.model_copy(update={"tracing": Tracing(endpoint=receiver.endpoint)})


async def test_a_chat_and_its_vote_are_told_without_what_was_said(
    settings: Callable[..., Config], run_server: Any, receiver: Receiver
) -> None:
    config = traced(settings(), receiver)
    async with run_server(config, ScriptedEngine()) as server:
        message = record_pb2.Message(role=record_pb2.ROLE_USER, content=SECRETS[0])
        request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], n=2))
        who = (("x-thumbwheel-user", SECRETS[1]),)
        reply = await server.chat.Chat(request, metadata=CALLER + who)
        answer = reply.answers[0]
        vote = feedback_pb2.RateRequest(
            response_id=answer.receipt.response_id, idempotency_key="k", edit=SECRETS[3], comment=SECRETS[2]
        )
        first = await server.feedback.Rate(vote, metadata=VOTER + who)
        again = await server.feedback.Rate(vote, metadata=CALLER + who)
        assert first.event_id == again.event_id  # another step of a trace is not another vote
    store = await Store.open(config.redis.url, config.redis.namespace)
    turn = await TurnLog(store, config.turn_log).get(answer.receipt.turn_id)
    votes = await FeedbackLog(store, config.feedback).current([turn.record.turn_id])
    await store.close()

    chat = receiver.one("thumbwheel.v1.ChatService/Chat")
    assert (chat.trace_id, chat.parent, chat.kind) == (TRACE, SPAN, 2)
    assert chat.facts == {
        "rpc.system.name": "grpc", "rpc.method": chat.name, "rpc.response.status_code": "OK"
    }  # fmt: skip
    assert turn.record.traceparent == f"00-{TRACE}-{chat.span_id}-01"
    sampled = receiver.one("chat")
    assert sampled.parent == receiver.one("queue").parent == chat.span_id
    assert receiver.one("prefill").parent == receiver.one("decode").parent == sampled.span_id
    assert sampled.facts["gen_ai.response.model"] == "base"
    assert sampled.facts["gen_ai.usage.input_tokens"] == answer.finish.usage.prompt_tokens
    assert sampled.facts["gen_ai.usage.output_tokens"] == sum(
        one.finish.usage.completion_tokens for one in reply.answers
    )
    assert 0 < sampled.facts["gen_ai.response.time_to_first_chunk"] < 10
    assert [span.trace_id for span in receiver.named("append_turn")] == [TRACE] * 2
    assert {span.facts["thumbwheel.log_status"] for span in receiver.named("append_turn")} == {"LOG_STATUS_LOGGED"}

    rated = receiver.named("thumbwheel.v1.FeedbackService/Rate")[0]
    assert rated.trace_id == TRACE[::-1]
    assert receiver.named("append_vote")[0].parent == rated.span_id
    assert [vote.traceparent for _, vote in votes[turn.record.turn_id]] == [f"00-{TRACE[::-1]}-{rated.span_id}-01"]
    told = b"".join(receiver.raw)
    assert not [word for word in (*SECRETS, answer.text) if word.encode() in told]


async def test_http_goes_on_with_its_callers_trace_too(
    settings: Callable[..., Config], run_server: Any, receiver: Receiver
) -> None:
    async with run_server(traced(settings(), receiver), ScriptedEngine()) as server, web(server) as client:
        response = await client.post("/v1/chat/completions", json=ask(), headers=dict(CALLER))
        assert response.status_code == 200
        assert (await client.post("/v1/chat/completions", json={}, headers=dict(CALLER))).status_code == 400
    good, bad = receiver.named("POST /v1/chat/completions")
    assert (good.trace_id, good.parent) == (TRACE, SPAN)
    assert good.facts == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "http.response.status_code": 200
    }  # fmt: skip
    assert bad.facts["http.response.status_code"] == 400
    assert not bad.failed  # it is the caller's mistake
    assert receiver.one("chat").parent == good.span_id


async def test_a_refusal_is_told_and_is_no_failure(
    settings: Callable[..., Config], run_server: Any, receiver: Receiver
) -> None:
    async with run_server(traced(settings(), receiver), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as refused:
            await server.chat.Chat(chat_pb2.ChatRequest(), metadata=CALLER)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    span = receiver.one("thumbwheel.v1.ChatService/Chat")
    assert span.facts["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert not span.failed


async def test_a_server_that_is_not_told_to_trace_keeps_no_traces(
    settings: Callable[..., Config], run_server: Any
) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine()) as server:
        message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
        request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message]))
        reply = await server.chat.Chat(request, metadata=CALLER)
    store = await Store.open(config.redis.url, config.redis.namespace)
    turn = await TurnLog(store, config.turn_log).get(reply.answers[0].receipt.turn_id)
    await store.close()
    assert turn.record.traceparent == ""
