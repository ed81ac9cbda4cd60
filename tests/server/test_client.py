"""The client library on the real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from server.engine_vllm import VllmEngine
from thumbwheel.config import Config
from thumbwheel_client import AsyncClient, AsyncStream, Client, NotFound
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


async def test_what_was_seen_of_a_stream_that_was_left_can_be_rated(
    settings: Callable[..., Config], run_server: Any, engine: VllmEngine
) -> None:
    async with run_server(settings(), engine) as server, AsyncClient(server.addresses.grpc) as client:
        async with client.stream("Hello", max_tokens=1000) as stream:
            seen = (await anext(stream)).text
        async with asyncio.timeout(10):
            while not await rated(client, stream):  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(0.01)
        request = feedback_pb2.ListVotesRequest(include_turns=True)
        [vote] = (await server.feedback.ListVotes(request, timeout=10)).votes
    [response] = vote.responses
    assert response.text.startswith(seen)
    assert response.finish_reason == pb.FINISH_REASON_CANCELLED
    assert len(response.token_ids) < 1000


async def rated(client: AsyncClient, stream: AsyncStream) -> bool:
    """Whether the answer is kept by now."""
    try:
        await client.rate(stream.receipt, "up")
    except NotFound:
        return False
    return True
