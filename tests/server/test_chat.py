"""Chat over real sockets: what is refused, what is streamed, what is logged, and what ends with its caller."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from prometheus_client import REGISTRY

from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.store import Store
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel_client.v1 import chat_pb2, record_pb2

SYSTEM, USER, ASSISTANT = record_pb2.ROLE_SYSTEM, record_pb2.ROLE_USER, record_pb2.ROLE_ASSISTANT

MakeConfig = Callable[..., Config]
RunServer = Any
Until = Callable[..., Awaitable[None]]


def ask(
    *messages: tuple[int, str], sampling: dict[str, Any] | None = None, **fields: Any
) -> chat_pb2.StreamChatRequest:
    said = messages or ((USER, "Hello"),)
    return chat_pb2.StreamChatRequest(
        input=chat_pb2.ChatInput(
            messages=[record_pb2.Message(role=role, content=content) for role, content in said],
            sampling=record_pb2.Sampling(**(sampling or {})),
            **fields,
        )
    )


async def turns_of(config: Config, ids: Iterable[str]) -> list[Turn | None]:
    store = await Store.open(config.redis.url, config.redis.namespace)
    try:
        return await TurnLog(store, config.turn_log).get_many(list(ids))
    finally:
        await store.close()


def detail(error: aio.AioRpcError, kind: type[Any]) -> Any:
    """The one error detail of a call that failed."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    assert (status.message, status.code) == (error.details(), error.code().value[0])
    found = kind()
    assert status.details[0].Unpack(found)
    return found


LONG = "word " * 2000

REFUSED = {
    "no messages": (chat_pb2.StreamChatRequest(), "input.messages", "at least one"),
    "unknown role": (ask((7, "x")), "input.messages[0].role", "ROLE_USER"),
    "no role": (ask((0, "x")), "input.messages[0].role", "ROLE_USER"),
    "late system": (ask((USER, "a"), (SYSTEM, "b"), (USER, "c")), "input.messages[1].role", "first"),
    "empty content": (ask((USER, "a"), (ASSISTANT, " \n"), (USER, "b")), "input.messages[1].content", "empty"),
    "last not user": (ask((USER, "a"), (ASSISTANT, "b")), "input.messages[1].role", "last"),
    "too long": (ask((USER, LONG)), "input.messages", "4095"),
    "far too long": (ask((USER, "x" * 300_000)), "input.messages", "4096"),
    "answer too long": (ask((USER, "a" * 3500), sampling={"max_tokens": 900}), "input.sampling.max_tokens", "4096"),
    "n": (ask(n=9), "input.n", "8"),
    "no tokens": (ask(sampling={"max_tokens": 0}), "input.sampling.max_tokens", "1 to 1024"),
    "many tokens": (ask(sampling={"max_tokens": 1025}), "input.sampling.max_tokens", "1 to 1024"),
    "hot": (ask(sampling={"temperature": 2.1}), "input.sampling.temperature", "0 to 2"),
    "cold": (ask(sampling={"temperature": -0.1}), "input.sampling.temperature", "0 to 2"),
    "nan": (ask(sampling={"temperature": float("nan")}), "input.sampling.temperature", "0 to 2"),
    "inf": (ask(sampling={"temperature": float("inf")}), "input.sampling.temperature", "0 to 2"),
    "top_p 0": (ask(sampling={"top_p": 0.0}), "input.sampling.top_p", "above 0"),
    "top_p nan": (ask(sampling={"top_p": float("nan")}), "input.sampling.top_p", "above 0"),
    "top_p 1.1": (ask(sampling={"top_p": 1.1}), "input.sampling.top_p", "at most 1"),
    "five stops": (ask(sampling={"stop": list("abcde")}), "input.sampling.stop", "at most 4"),
    "empty stop": (ask(sampling={"stop": ["a", ""]}), "input.sampling.stop[1]", "1 to 128"),
    "conversation": (ask(conversation_id="c" * 129), "input.conversation_id", "at most 128"),
    "version": (ask(version="v" * 129), "input.version", "at most 128"),
}


async def test_every_bad_request_is_refused_with_its_field_and_limit(
    settings: MakeConfig, run_server: RunServer
) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        for name, (request, field, limit) in REFUSED.items():
            with pytest.raises(aio.AioRpcError) as refusal:
                await server.chat.Chat(chat_pb2.ChatRequest(input=request.input))
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT, name
            [violation] = detail(refusal.value, error_details_pb2.BadRequest).field_violations
            assert violation.field == field, name
            assert limit in violation.description, name
            assert rpc_status.from_call(refusal.value) is not None


async def test_a_long_prompt_is_read_without_holding_up_others(settings: MakeConfig, run_server: RunServer) -> None:
    reading, read = threading.Event(), threading.Event()

    class SlowReader(ScriptedEngine):
        def render(self, messages: Sequence[tuple[str, str]]) -> list[int]:
            if len(messages[0][1]) > 5000:
                reading.set()
                read.wait(20)
            return super().render(messages)

    async with run_server(settings(), SlowReader(max_context=8192)) as server:
        long = asyncio.ensure_future(server.chat.Chat(chat_pb2.ChatRequest(input=ask((USER, "a" * 6000)).input)))
        await asyncio.to_thread(reading.wait, 10)
        assert (await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input), timeout=5)).answers
        assert not long.done()
        read.set()
        assert (await long).answers


async def test_events_come_in_order_and_the_answers_interleave(settings: MakeConfig, run_server: RunServer) -> None:
    def script(_: Any, prompt: str, index: int) -> str:
        return f"answer {index}: naïve 日本語 🙂 " * 3

    config = settings()
    async with run_server(config, ScriptedEngine(script=script)) as server:
        events = [event async for event in server.chat.StreamChat(ask(n=3, conversation_id="c1", sampling={"seed": 5}))]
    receipts = {event.index: event.receipt for event in events if event.HasField("receipt")}
    finishes = {event.index: event.finish for event in events if event.HasField("finish")}
    assert set(receipts) == set(finishes) == {0, 1, 2}
    for index in range(3):
        kinds = [event.WhichOneof("event") for event in events if event.index == index]
        assert kinds[0] == "receipt"
        assert kinds[-1] == "finish"
        assert set(kinds[1:-1]) == {"delta"}
        text = "".join(event.delta for event in events if event.index == index)
        assert text == script(None, "", index)
        assert finishes[index].reason == record_pb2.FINISH_REASON_STOP
        assert finishes[index].log_status == chat_pb2.LOG_STATUS_LOGGED
        assert finishes[index].usage.completion_tokens == len(text.encode()) + 1
    runs = [index for index, _ in itertools.groupby(event.index for event in events if event.HasField("delta"))]
    assert len(runs) > 6, "the answers interleave"

    [turn] = await turns_of(config, [receipts[0].turn_id])
    assert turn is not None
    assert turn.record.conversation_id == "c1"
    assert list(turn.record.messages) == [record_pb2.Message(role=USER, content="Hello")]
    assert turn.record.sampling == record_pb2.Sampling(max_tokens=256, temperature=1, top_p=1, seed=5)
    assert bytes(turn.record.prompt_token_ids) == b"<user>Hello\n<assistant>"
    for index, response in turn.responses.items():
        assert response.response_id == receipts[index].response_id
        assert response.text == script(None, "", index)
        assert len(response.token_ids) == len(response.logprobs) == finishes[index].usage.completion_tokens
        assert [(span.version, span.first_token) for span in response.spans] == [("base", 0)]


async def test_chat_gives_the_same_answer_in_one_message(settings: MakeConfig, run_server: RunServer) -> None:
    request = ask(n=2, sampling={"seed": 7, "max_tokens": 9})
    async with run_server(settings(), ScriptedEngine()) as server:
        streamed = [event async for event in server.chat.StreamChat(request)]
        whole = await server.chat.Chat(chat_pb2.ChatRequest(input=request.input))
    assert [answer.receipt.response_id[-2:] for answer in whole.answers] == ["-0", "-1"]
    for index, answer in enumerate(whole.answers):
        assert answer.text == "".join(event.delta for event in streamed if event.index == index)
        assert answer.finish.reason == record_pb2.FINISH_REASON_LENGTH
        assert answer.finish.usage.completion_tokens == 9


async def test_the_default_length_shrinks_to_the_room_that_is_left(settings: MakeConfig, run_server: RunServer) -> None:
    engine = ScriptedEngine(max_context=100, script=lambda *_: "x" * 500)
    async with run_server(settings(), engine) as server:
        answer = await server.chat.Chat(chat_pb2.ChatRequest(input=ask((USER, "y" * 60)).input))
    usage = answer.answers[0].finish.usage
    assert usage.prompt_tokens + usage.completion_tokens == 100


async def test_the_log_tells_whose_version_was_chosen_by_the_caller(
    settings: MakeConfig, run_server: RunServer
) -> None:
    config = settings()
    async with run_server(config, ScriptedEngine()) as server:
        answers = [
            (await server.chat.Chat(chat_pb2.ChatRequest(input=ask(version=version).input))).answers[0]
            for version in ("", "base")
        ]
    turns = await turns_of(config, [answer.receipt.turn_id for answer in answers])
    assert [turn.record.pinned for turn in turns if turn is not None] == [False, True]


async def test_cancelling_ends_the_engines_work_and_logs_what_was_seen(
    settings: MakeConfig, run_server: RunServer, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200, token_seconds=0.005)
    config = settings(max_sequences=1)
    async with run_server(config, engine) as server:
        call = server.chat.StreamChat(ask())
        receipt = (await call.read()).receipt
        seen = [(await call.read()).delta for _ in range(3)]
        call.cancel()
        await until(lambda: not engine.running)
        # The one place is free again.
        engine._token_seconds = 0
        assert (await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input))).answers
    [turn] = await turns_of(config, [receipt.turn_id])
    assert turn is not None
    [response] = turn.responses.values()
    assert response.finish_reason == record_pb2.FINISH_REASON_CANCELLED
    assert response.text.startswith("".join(seen))
    assert len(response.token_ids) == len(response.logprobs) == len(response.text) < 200


async def test_a_deadline_ends_the_engines_work(settings: MakeConfig, run_server: RunServer, until: Until) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200)
    engine.resume.clear()
    async with run_server(settings(), engine) as server:
        with pytest.raises(aio.AioRpcError) as late:
            await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input), timeout=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not engine.running)


async def test_without_a_deadline_the_servers_own_applies(settings: MakeConfig, run_server: RunServer) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200)
    engine.resume.clear()
    async with run_server(settings(default_deadline=0.3), engine) as server:
        for timeout in (None, 60):
            with pytest.raises(aio.AioRpcError) as late:
                await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input), timeout=timeout)
            assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "0.3 s" in late.value.details()
            assert not engine.running


async def test_overload_is_refused_with_a_retry_hint(settings: MakeConfig, run_server: RunServer, until: Until) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 20)
    engine.resume.clear()
    async with run_server(settings(max_sequences=2, max_queue=2), engine) as server:
        running = [server.chat.Chat(chat_pb2.ChatRequest(input=ask(n=2).input)) for _ in range(2)]
        await until(lambda: REGISTRY.get_sample_value("thumbwheel_queued_answers") == 2)
        with pytest.raises(aio.AioRpcError) as refusal:
            await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = detail(refusal.value, error_details_pb2.RetryInfo).retry_delay
        assert 0.5 <= hint.ToTimedelta().total_seconds() <= 30
        engine.resume.set()
        for call in running:
            assert len((await call).answers) == 2


async def test_an_unexpected_error_shows_an_id_and_nothing_else(
    settings: MakeConfig, run_server: RunServer, caplog: pytest.LogCaptureFixture
) -> None:
    def script(*_: Any) -> str:
        raise RuntimeError("the secret sauce")

    async with run_server(settings(), ScriptedEngine(script=script)) as server:
        with pytest.raises(aio.AioRpcError) as failure:
            await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input))
        assert failure.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in failure.value.details()
        [record] = [record for record in caplog.records if record.getMessage() == "call_failed"]
        assert record.error_id in failure.value.details()
        assert record.exc_info is not None
        # And the server goes on.
        with pytest.raises(aio.AioRpcError):
            await server.chat.Chat(chat_pb2.ChatRequest())


async def test_an_unknown_pin_is_not_found(settings: MakeConfig, run_server: RunServer) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as failure:
            await server.chat.Chat(chat_pb2.ChatRequest(input=ask(version="nobody").input))
        assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_slow_reader_holds_no_place(settings: MakeConfig, run_server: RunServer) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 1000)
    async with run_server(settings(max_sequences=1), engine) as server:
        slow = server.chat.StreamChat(ask(sampling={"max_tokens": 1000}))
        first = await slow.read()
        answer = await server.chat.Chat(chat_pb2.ChatRequest(input=ask().input), timeout=20)
        assert answer.answers[0].receipt.response_id != first.receipt.response_id
        text = ""
        while (event := await slow.read()) is not aio.EOF:
            text += event.delta
        assert len(text) == 1000


async def test_callers_who_leave_at_any_moment_leave_nothing_behind(
    settings: MakeConfig, run_server: RunServer, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    engine = ScriptedEngine(script=lambda *_: "word " * 20)
    dice = random.Random(7)

    async def leave_early(server: Any) -> None:
        call = server.chat.StreamChat(ask(n=dice.choice((1, 2, 8))))
        for _ in range(dice.randrange(12)):
            if await call.read() is aio.EOF:
                return
        await asyncio.sleep(dice.random() * 0.02)
        call.cancel()

    async with run_server(settings(max_queue=2000), engine) as server:
        await asyncio.gather(*(leave_early(server) for _ in range(90)))
        await until(lambda: not engine.running)
        await until(lambda: REGISTRY.get_sample_value("thumbwheel_running_answers", {"source": "chat"}) == 0)
        assert REGISTRY.get_sample_value("thumbwheel_queued_answers") == 0
        assert len((await server.chat.Chat(chat_pb2.ChatRequest(input=ask(n=8).input))).answers) == 8
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_message_beyond_the_receive_limit_is_refused(settings: MakeConfig, run_server: RunServer) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as refusal:
            await server.chat.Chat(chat_pb2.ChatRequest(input=ask((USER, "x" * (1 << 20))).input))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
