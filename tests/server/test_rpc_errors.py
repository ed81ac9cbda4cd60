"""The boundary of every call: what is no request, and callers who do not take their answers."""

from __future__ import annotations

import logging
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


async def test_a_stream_that_nobody_reads_ends_with_the_longest_deadline(
    settings: MakeConfig, run_server: Any, until: Any, caplog: pytest.LogCaptureFixture
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
        await connection.call(STREAM_CHAT, request.SerializeToString())
        await until(lambda: value("thumbwheel_running_calls") == running + 1)
        await until(lambda: value("thumbwheel_running_calls") == running)
        assert value("thumbwheel_unread_streams_total") == unread + 1
        [line] = [record for record in caplog.records if record.getMessage() == "caller_stopped_reading"]
        assert line.method == "StreamChat"
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
