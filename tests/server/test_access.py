"""Who may call what, over real gRPC: denied unless a scope allows it, and known from the credential alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import Default
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server.access import SCOPES
from server.app import SERVICES
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import (
    chat_pb2,
    chat_pb2_grpc,
    feedback_pb2,
    import_pb2,
    import_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    privacy_pb2,
    privacy_pb2_grpc,
    record_pb2,
    rollout_pb2,
)
from thumbwheel_client.v1.record_pb2 import (
    SCOPE_ADMIN,
    SCOPE_CHAT,
    SCOPE_METRICS,
    SCOPE_RATE,
    Scope,
)

Metadata = tuple[tuple[str, str], ...]

ASK = chat_pb2.ChatRequest(
    input=chat_pb2.ChatInput(
        messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")],
        sampling=record_pb2.Sampling(max_tokens=20),
    )
)


def closed(config: Config, **security: Any) -> Config:
    return config.model_copy(update={"security": config.security.model_copy(update={"auth": "keys", **security})})


def by(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.open(redis_url, "default")
    yield store
    await store.close()


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any, store: Store) -> AsyncIterator[Any]:
    async with run_server(closed(settings()), ScriptedEngine()) as server:
        yield server


@pytest.fixture
def key(store: Store) -> Any:
    async def make(user: str, *scopes: Scope.ValueType, **facts: Any) -> Metadata:
        return by((await Credentials(store).make(user, scopes, **facts))[0])

    return make


async def code(call: Any) -> grpc.StatusCode:
    try:
        await call
    except aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def calls(server: Any) -> dict[str, Callable[[Metadata], Any]]:
    """One call of every method, by its path."""
    rate = feedback_pb2.RateRequest(response_id="t0-0", idempotency_key="k", thumb=record_pb2.THUMB_UP)
    retract = feedback_pb2.RetractRequest(response_id="t0-0", idempotency_key="k", kind=record_pb2.VOTE_KIND_THUMB)
    rollout = rollout_pb2.RolloutRequest(version="base", prompts=[rollout_pb2.TokenPrompt(token_ids=[1])])

    def stream(call: Callable[..., Any], request: Any) -> Callable[[Metadata], Any]:
        async def read(metadata: Metadata) -> None:
            reading = call(request, metadata=metadata)
            await reading.read()
            reading.cancel()

        return read

    chat, feedback, models = server.chat, server.feedback, server.models
    return {
        "/thumbwheel.v1.ChatService/Chat": lambda m: chat.Chat(ASK, metadata=m),
        "/thumbwheel.v1.ChatService/StreamChat": stream(chat.StreamChat, chat_pb2.StreamChatRequest(input=ASK.input)),
        "/thumbwheel.v1.FeedbackService/Rate": lambda m: feedback.Rate(rate, metadata=m),
        "/thumbwheel.v1.FeedbackService/Retract": lambda m: feedback.Retract(retract, metadata=m),
        "/thumbwheel.v1.FeedbackService/ListVotes": lambda m: feedback.ListVotes(
            feedback_pb2.ListVotesRequest(), metadata=m
        ),
        "/thumbwheel.v1.ModelService/ListVersions": lambda m: models.ListVersions(
            models_pb2.ListVersionsRequest(), metadata=m
        ),
        "/thumbwheel.v1.ModelService/GetVersion": lambda m: models.GetVersion(
            models_pb2.GetVersionRequest(name="base"), metadata=m
        ),
        "/thumbwheel.v1.ModelService/Promote": lambda m: models.Promote(
            models_pb2.PromoteRequest(name="base"), metadata=m
        ),
        "/thumbwheel.v1.ModelService/Rollback": lambda m: models.Rollback(models_pb2.RollbackRequest(), metadata=m),
        "/thumbwheel.v1.ModelService/WatchVersions": stream(models.WatchVersions, models_pb2.WatchVersionsRequest()),
        "/thumbwheel.v1.PrivacyService/Erase": lambda m: privacy_pb2_grpc.PrivacyServiceStub(server.admin).Erase(
            privacy_pb2.EraseRequest(user="nobody"), metadata=m
        ),
        "/thumbwheel.v1.ImportService/ImportVotes": lambda m: import_pb2_grpc.ImportServiceStub(
            server.admin
        ).ImportVotes(import_pb2.ImportVotesRequest(), metadata=m),
        "/thumbwheel.v1.RolloutService/Rollout": stream(server.rollout.Rollout, rollout),
    }


def test_every_method_has_a_scope(server_methods: set[str]) -> None:
    assert server_methods == set(SCOPES)


@pytest.fixture
def server_methods() -> set[str]:
    services = [Default().FindServiceByName(name) for name in SERVICES]
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


async def test_a_scope_opens_its_own_methods_and_no_other(server: Any, key: Any) -> None:
    wanted = calls(server)
    assert set(wanted) == set(SCOPES), "a new method needs a call here"
    for scope in (value for value in Scope.values() if value):
        metadata = await key("ada", scope)
        for method, call in wanted.items():
            denied = await code(call(metadata)) is grpc.StatusCode.PERMISSION_DENIED
            assert denied == (SCOPES[method] != scope), (Scope.Name(scope), method)


async def test_without_a_valid_key_nothing_opens(server: Any, key: Any) -> None:
    [(_, good)] = await key("ada", *Scope.values()[1:])
    wrong: list[Metadata] = [
        (),
        by("nonsense"),
        by("tw_000000000000_" + "A" * 43),
        by("eyJhbGciOiJub25lIn0.e30."),  # a token, where no tokens are set up
        (("authorization", good.removeprefix("Bearer ")),),
        (("authorization", good), ("authorization", good)),
        (("x-thumbwheel-key", good),),
    ]
    for metadata in wrong:
        for method, call in calls(server).items():
            assert await code(call(metadata)) is grpc.StatusCode.UNAUTHENTICATED, (metadata, method)


async def test_a_caller_cannot_name_somebody_else(server: Any, key: Any) -> None:
    metadata = await key("ada", SCOPE_CHAT)
    assert await code(server.chat.Chat(ASK, metadata=(*metadata, ("x-thumbwheel-user", "bob")))) is (
        grpc.StatusCode.INVALID_ARGUMENT
    )


async def test_keys_of_one_user_are_one_rater_and_others_may_not_rate(server: Any, key: Any) -> None:
    chat, rate = await key("ada", SCOPE_CHAT), await key("ada", SCOPE_RATE)
    other = await key("bob", SCOPE_RATE)
    [answer] = (await server.chat.Chat(ASK, metadata=chat)).answers
    vote = feedback_pb2.RateRequest(
        response_id=answer.receipt.response_id, idempotency_key="k", thumb=record_pb2.THUMB_UP
    )
    assert await code(server.feedback.Rate(vote, metadata=other)) is grpc.StatusCode.PERMISSION_DENIED
    assert await code(server.feedback.Rate(vote, metadata=rate)) is grpc.StatusCode.OK
    mine = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=rate)
    theirs = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=other)
    assert (len(mine.votes), len(theirs.votes)) == (1, 0)
    everybody = feedback_pb2.ListVotesRequest(all_raters=True)
    assert await code(server.feedback.ListVotes(everybody, metadata=rate)) is grpc.StatusCode.PERMISSION_DENIED
    operator = await key("op", SCOPE_RATE, SCOPE_ADMIN)
    assert len((await server.feedback.ListVotes(everybody, metadata=operator)).votes) == 1


async def test_chat_and_operators_have_doors_of_their_own(server: Any, key: Any) -> None:
    metadata = await key("op", *Scope.values()[1:])
    models = models_pb2_grpc.ModelServiceStub(server.channel)
    chat = chat_pb2_grpc.ChatServiceStub(server.admin)
    assert await code(models.ListVersions(models_pb2.ListVersionsRequest(), metadata=metadata)) is (
        grpc.StatusCode.UNIMPLEMENTED
    )
    assert await code(chat.Chat(ASK, metadata=metadata)) is grpc.StatusCode.UNIMPLEMENTED


async def test_probes_need_no_key_and_metrics_do(server: Any, key: Any) -> None:
    for channel in (server.channel, server.admin):
        health = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING

    async def status(path: str, header: str = "") -> int:
        host, _, port = server.addresses.http.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        line = f"Authorization: {header}\r\n" if header else ""
        writer.write(f"GET {path} HTTP/1.0\r\n{line}\r\n".encode())
        found = int((await reader.readline()).split()[1])
        writer.close()
        return found

    [(_, scraper)] = await key("prometheus", SCOPE_METRICS)
    [(_, chatter)] = await key("ada", SCOPE_CHAT)
    assert await status("/healthz") == await status("/readyz") == 200
    assert await status("/metrics") == await status("/metrics", chatter) == 401
    assert await status("/metrics", scraper) == 200


async def test_a_revoked_key_ends_within_seconds(server: Any, store: Store) -> None:
    secret, record = await Credentials(store).make("ada", [SCOPE_CHAT])
    assert await code(server.chat.Chat(ASK, metadata=by(secret))) is grpc.StatusCode.OK
    await Credentials(store).revoke(record.key_id)
    async with asyncio.timeout(5):
        while await code(server.chat.Chat(ASK, metadata=by(secret))) is grpc.StatusCode.OK:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_reflection_is_off_where_keys_are_asked_for(server: Any) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    assert await code(call.read()) is grpc.StatusCode.UNIMPLEMENTED


async def test_a_tenant_has_a_prefix_cache_of_its_own(
    settings: Callable[..., Config], run_server: Any, key: Any, store: Store
) -> None:
    """The engine gets the tenant of the key; that it separates by it is the engine's own test."""
    seen: list[str] = []

    class Engine(ScriptedEngine):
        def generate(self, *args: Any, tenant: str = "", **more: Any) -> Any:
            seen.append(tenant)
            return super().generate(*args, tenant=tenant, **more)

    async with run_server(closed(settings()), Engine()) as server:
        for metadata in (await key("ada", SCOPE_CHAT, tenant="acme"), await key("bob", SCOPE_CHAT)):
            await server.chat.Chat(ASK, metadata=metadata)
    assert seen == ["acme", "bob"]


async def test_a_version_that_was_not_released_answers_operators_only(server: Any, key: Any, store: Store) -> None:
    record = record_pb2.VersionRecord(
        name="v1", state=record_pb2.VERSION_STATE_CANDIDATE, parent="base", path="nowhere"
    )
    await Registry(store).register(record)
    ask = chat_pb2.ChatRequest()
    ask.CopyFrom(ASK)
    ask.input.version = "v1"
    with pytest.raises(aio.AioRpcError, match="has not been released") as refused:
        await server.chat.Chat(ask, metadata=await key("ada", SCOPE_CHAT))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    # It has no files, so an operator gets as far as these.
    operator = await key("op", SCOPE_CHAT, SCOPE_ADMIN)
    assert await code(server.chat.Chat(ask, metadata=operator)) is grpc.StatusCode.FAILED_PRECONDITION
