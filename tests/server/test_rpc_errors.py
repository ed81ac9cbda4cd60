"""The boundary of every call: what is no request, and callers who do not take their answers."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from prometheus_client import REGISTRY

from server.engine_scripted import ScriptedEngine
from tests.http2 import Connection
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2, record_pb2

MakeConfig = Callable[..., Config]

STREAM_CHAT = "/thumbwheel.v1.ChatService/StreamChat"
METHODS = [
    "/thumbwheel.v1.ChatService/Chat",
    STREAM_CHAT,
    "/thumbwheel.v1.FeedbackService/Rate",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
]


@pytest.mark.parametrize("path", METHODS)
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x01\xff"], ids=["no message", "no UTF-8"])
async def test_bytes_that_are_no_request_are_the_callers_mistake(
    settings: MakeConfig, run_server: Any, caplog: pytest.LogCaptureFixture, path: str, raw: bytes
) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as refusal:
            async for _ in server.channel.unary_stream(path)(raw, timeout=5):
                pass
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("path", METHODS[:2])
async def test_a_refusal_is_a_status_alone_so_that_clients_can_repeat_the_call(
    settings: MakeConfig, run_server: Any, path: str
) -> None:
    def refused() -> float:
        labels = {"method": path.rpartition("/")[2], "code": "INVALID_ARGUMENT"}
        return REGISTRY.get_sample_value("thumbwheel_requests_total", labels) or 0

    before, policy = refused(), {"maxAttempts": 3, "initialBackoff": "0.01s", "maxBackoff": "0.01s"}
    policy |= {"backoffMultiplier": 1, "retryableStatusCodes": ["INVALID_ARGUMENT"]}
    options = [("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]}))]
    async with (
        run_server(settings(), ScriptedEngine()) as server,
        aio.insecure_channel(server.addresses.grpc, options) as channel,
    ):
        with pytest.raises(aio.AioRpcError):
            await channel.unary_unary(path)(b"", timeout=5)
    assert refused() == before + 3


@pytest.mark.parametrize("path", METHODS[:2])
async def test_an_answer_that_nobody_reads_ends_with_the_longest_deadline(
    settings: MakeConfig, run_server: Any, until: Any, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    def value(name: str) -> float:
        return REGISTRY.get_sample_value(name) or 0

    unread, running = value("thumbwheel_unread_streams_total"), value("thumbwheel_running_calls")
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    request = chat_pb2.StreamChatRequest(input=chat_pb2.ChatInput(messages=[message]))
    async with (
        run_server(settings(default_deadline=0.5), ScriptedEngine()) as server,
        Connection.to(server.addresses.grpc, window=0) as connection,
    ):
        await connection.call(path, request.SerializeToString())
        await until(lambda: value("thumbwheel_running_calls") == running + 1)
        await until(lambda: value("thumbwheel_running_calls") == running)
        assert value("thumbwheel_unread_streams_total") == unread + 1
        [line] = [record for record in caplog.records if record.getMessage() == "caller_stopped_reading"]
        assert path.endswith(f"/{line.method}")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_callers_who_leave_as_their_reply_goes_out_are_nobodys_error(
    settings: MakeConfig, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dice = random.Random(5)
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message]))

    async def leave(server: Any, seconds: float) -> bool:
        call = server.chat.Chat(request)
        await asyncio.sleep(seconds)
        return bool(call.cancel())

    async with run_server(settings(), ScriptedEngine(script=lambda *_: "x" * 5)) as server:
        began = time.monotonic()
        await server.chat.Chat(request)
        usual = time.monotonic() - began
        left = [await leave(server, 2 * usual * dice.random()) for _ in range(200)]
        assert {True, False} == set(left)
        assert (await server.chat.Chat(request)).answers
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
