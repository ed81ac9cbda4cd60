"""The client library on the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from server.engine_vllm import VllmEngine
from thumbwheel.config import Config
from thumbwheel_client import AsyncClient, Client
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb


async def test_it_chats_streams_and_rates(settings: Callable[..., Config], run_server: Any, engine: VllmEngine) -> None:
    def talk(target: str) -> None:
        with Client(target) as client:
            answer = client.chat("Hello", max_tokens=8, temperature=0, seed=1)
            with client.stream("Hello", max_tokens=8, temperature=0, seed=1) as stream:
                assert "".join(piece.text for piece in stream) == answer.text == stream.answer.text
            assert 0 < stream.finish.usage.completion_tokens <= 8
            assert answer.finish.log_status == "logged"
            client.rate(answer, "up")
            one, other = client.chat("Hello", n=2, max_tokens=4)
            client.rank([one, other])

    async with run_server(settings(), engine) as server:
        await asyncio.to_thread(talk, server.addresses.grpc)
        listed = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(), timeout=10)
    assert {vote.event.kind for vote in listed.votes} == {pb.VOTE_KIND_THUMB, pb.VOTE_KIND_RANKING}


async def test_leaving_an_async_stream_ends_the_engines_work(
    settings: Callable[..., Config], run_server: Any, engine: VllmEngine, until: Callable[..., Awaitable[None]]
) -> None:
    async with run_server(settings(), engine) as server, AsyncClient(server.addresses.grpc) as client:
        async with client.stream("Hello", max_tokens=1000) as stream:
            await anext(stream)
        await until(lambda: not running(engine))
        assert (await client.chat("Hello", max_tokens=2)).finish.usage.completion_tokens <= 2
