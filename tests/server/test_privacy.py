"""Erase over gRPC, and caches that hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from server.engine_scripted import ScriptedEngine
from server.privacy import forget_with
from thumbwheel.config import Config
from thumbwheel.erasure import Erasure
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, privacy_pb2, privacy_pb2_grpc, record_pb2


async def test_a_person_is_erased_and_every_server_forgets(
    settings: Callable[..., Config], run_server: Any, until: Callable[..., Awaitable[None]]
) -> None:
    engine, elsewhere = ScriptedEngine(), ScriptedEngine()
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    ask = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], n=2))
    config = settings()
    store = await Store.open(config.redis.url, config.redis.namespace)
    follower = asyncio.create_task(forget_with(Erasure(store), elsewhere))
    async with run_server(config, engine) as server:
        ann, bob = ((("x-thumbwheel-user", name),) for name in ("ann", "bob"))
        for metadata in (ann, bob):
            [answer, _] = (await server.chat.Chat(ask, metadata=metadata)).answers
            vote = feedback_pb2.RateRequest(
                response_id=answer.receipt.response_id, idempotency_key="k", thumb=record_pb2.THUMB_UP
            )
            await server.feedback.Rate(vote, metadata=metadata)
        privacy = privacy_pb2_grpc.PrivacyServiceStub(server.admin)
        erased = await privacy.Erase(privacy_pb2.EraseRequest(user="ann"))
        assert (erased.turns, erased.votes, list(erased.versions)) == (1, 1, [])
        everybody = feedback_pb2.ListVotesRequest(all_raters=True)
        assert len((await server.feedback.ListVotes(everybody)).votes) == 1
        await until(lambda: engine.forgotten == elsewhere.forgotten == 1)
        again = await privacy.Erase(privacy_pb2.EraseRequest(user="ann"))
        assert (again.turns, again.votes) == (0, 0)
    follower.cancel()
    await asyncio.wait((follower,))
    await store.close()


@pytest.mark.parametrize("request_", [{"user": ""}, {"user": "a\n"}, {"user": "a", "issuer": "\0"}])
async def test_names_that_are_none(settings: Callable[..., Config], run_server: Any, request_: dict[str, str]) -> None:
    async with run_server(settings(), ScriptedEngine()) as server:
        with pytest.raises(aio.AioRpcError) as refused:
            await privacy_pb2_grpc.PrivacyServiceStub(server.admin).Erase(privacy_pb2.EraseRequest(**request_))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
