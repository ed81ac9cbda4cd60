"""The boundary of calls over HTTP: who is let in, what is refused before it costs, and what ends with its caller."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from server import http_boundary, http_connection
from server.engine_scripted import ScriptedEngine
from tests.server.web import ask, chunks, complete, connection, error, rate, request, web
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.errors import EngineDead
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, record_pb2
from thumbwheel_client.v1.record_pb2 import SCOPE_CHAT, SCOPE_RATE, Limits

MakeConfig = Callable[..., Config]
Until = Callable[..., Awaitable[None]]

CHAT = "/v1/chat/completions"


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


def calls(code: str) -> float:
    return value("thumbwheel_requests_total", method=f"POST {CHAT}", code=code)


def with_security(config: Config, **security: Any) -> Config:
    return config.model_copy(update={"security": config.security.model_copy(update=security)})


def by(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def key(redis_url: str) -> Any:
    async def make(user: str, *scopes: Any, **facts: Any) -> str:
        store = await Store.open(redis_url, "default")
        try:
            return (await Credentials(store).make(user, scopes, **facts))[0]
        finally:
            await store.close()

    return make


@pytest.fixture
async def server(settings: MakeConfig, run_server: Any) -> AsyncIterator[Any]:
    async with run_server(settings(), ScriptedEngine()) as server:
        yield server


async def test_calls_are_counted_beside_those_over_grpc(server: Any) -> None:
    ok, wrong = calls("OK"), calls("INVALID_ARGUMENT")
    async with web(server) as client:
        await complete(client, ask())
        await chunks(client, ask())
        await client.post(CHAT, json=ask(n=0))
    assert (calls("OK"), calls("INVALID_ARGUMENT")) == (ok + 2, wrong + 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_caller_who_closes_the_connection_ends_the_tokens_at_once(
    settings: MakeConfig, run_server: Any, until: Until, stream: bool
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200, token_seconds=0.005)
    config, cancelled = settings(), calls("CANCELLED")
    async with run_server(config, engine) as server:
        async with connection(server) as (reader, writer):
            writer.write(request(ask(stream=stream)))
            if stream:
                await reader.readuntil(b'"content":"x"')
            else:
                await until(lambda: bool(engine.running))
            [turn_id] = engine.running
            engine.resume.clear()  # whatever ends it now is not the end of the answer
        await until(lambda: not engine.running)
        await until(lambda: calls("CANCELLED") == cancelled + 1)
    store = await Store.open(config.redis.url, config.redis.namespace)
    [turn] = await TurnLog(store, config.turn_log).get_many([turn_id])
    await store.close()
    if stream:  # what was seen can be rated
        assert turn is not None
        assert turn.responses[0].finish_reason == record_pb2.FINISH_REASON_CANCELLED


async def test_an_answer_that_nobody_reads_ends_with_the_longest_deadline(
    settings: MakeConfig, run_server: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    unread, running = value("thumbwheel_unread_streams_total"), value("thumbwheel_running_calls")
    engine = ScriptedEngine(max_context=100_000, script=lambda *_: "x" * 6000)
    async with run_server(settings(default_deadline=3, max_tokens=8000), engine) as server:
        host, _, port = server.addresses.web.rpartition(":")
        caller = socket.socket()
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with caller:
            caller.connect((host, int(port)))
            caller.sendall(request(ask(stream=True, n=8, max_tokens=8000)))
            await until(lambda: value("thumbwheel_running_calls") == running + 1)
            await until(lambda: value("thumbwheel_running_calls") == running)
        assert value("thumbwheel_unread_streams_total") == unread + 1
    [line] = [record for record in caplog.records if record.getMessage() == "caller_stopped_reading"]
    assert line.peer.startswith("127.0.0.1:")  # type: ignore[attr-defined]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_call_beyond_the_longest_deadline_is_ended(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine()
    engine.resume.clear()
    async with run_server(settings(default_deadline=0.3), engine) as server, web(server) as client:
        response = await client.post(CHAT, json=ask())
        found = error(response, 504)
        assert (found["code"], found["type"]) == ("deadline_exceeded", "server_error")
        assert response.headers["x-should-retry"] == "false"
        late = await client.post(CHAT, json=ask(stream=True))
        events = [line.removeprefix("data: ") for line in late.text.split("\n\n") if line]
        assert late.status_code == 200, "its receipt was there"
        assert json.loads(events[0])["choices"][0]["delta"]["role"] == "assistant"
        assert json.loads(events[-1])["error"]["code"] == "deadline_exceeded"
        assert not engine.running
        engine.resume.set()


async def test_an_unexpected_error_tells_an_id_and_no_more(
    settings: MakeConfig, run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> str:
        raise RuntimeError("a secret")

    async with run_server(settings(), ScriptedEngine(script=fail)) as server, web(server) as client:
        found = error(await client.post(CHAT, json=ask()), 500)
        streamed = await client.post(CHAT, json=ask(stream=True))
    assert (found["type"], found["code"]) == ("server_error", "internal_error")
    assert "secret" not in found["message"] + streamed.text
    assert "internal error" in streamed.text
    logged = [record for record in caplog.records if record.getMessage() == "call_failed"]
    assert len(logged) == 2
    assert logged[0].error_id in found["message"]  # type: ignore[attr-defined]


async def test_a_dead_engine_is_said_in_the_stream_and_after_it(settings: MakeConfig, run_server: Any) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 200)
    with pytest.raises(EngineDead):  # noqa: PT012 - the server ends with its engine
        async with run_server(settings(), engine) as server, connection(server) as (reader, writer):
            engine.resume.clear()
            writer.write(request(ask(stream=True)))
            await reader.readuntil(b'"role":"assistant"')
            engine.die()
            said = (await reader.readuntil(b"0\r\n\r\n")).decode()
            assert '"code": "unavailable"' in said
            assert "[DONE]" not in said
            await asyncio.wait((server.task,), timeout=10)


async def test_too_many_are_told_when_to_come_back(settings: MakeConfig, run_server: Any, until: Until) -> None:
    engine = ScriptedEngine()
    engine.resume.clear()
    config = settings(max_sequences=1, max_queue=1, rollout_sequences=1, rollout_sequences_busy=1)
    async with run_server(config, engine) as server, web(server) as client:
        busy = [asyncio.create_task(client.post(CHAT, json=ask())) for _ in range(2)]
        await until(lambda: value("thumbwheel_queued_answers") == 1)
        response = await client.post(CHAT, json=ask())
        found = error(response, 429)
        assert (found["type"], found["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert int(response.headers["retry-after"]) >= 1
        assert float(response.headers["retry-after-ms"]) >= 500
        engine.resume.set()
        assert [reply.status_code for reply in await asyncio.gather(*busy)] == [200, 200]


async def test_keys_open_what_their_scopes_say(settings: MakeConfig, run_server: Any, key: Any) -> None:
    config = with_security(settings(), auth="keys")
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        chat, vote = await key("ada", SCOPE_CHAT), await key("ada", SCOPE_RATE)
        for headers in ({}, {"authorization": "Basic eA=="}, by("sk-1"), by(chat[:-1] + "!")):
            response = await client.post(CHAT, json=ask(), headers=headers)
            found = error(response, 401)
            assert (found["code"], response.headers["www-authenticate"]) == ("invalid_api_key", "Bearer")
        for verb, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/v1/models/base")):
            assert error(await client.request(verb, path, headers=by(vote)), 403)["code"] == "permission_denied"
        for verb in ("POST", "DELETE"):
            assert error(await client.request(verb, "/v1/feedback", headers=by(chat)), 403)
        body = await complete(client, ask(), headers=by(chat))
        sent = {"response_id": body["id"], "thumb": "up"}
        assert (await client.post("/v1/feedback", json=sent, headers=by(vote))).status_code == 200, "of the same user"
        other = await key("bob", SCOPE_RATE)
        assert error(await client.post("/v1/feedback", json=sent, headers=by(other)), 403)
        named = {**by(chat), "x-thumbwheel-user": "bob"}
        assert error(await client.post(CHAT, json=ask(), headers=named), 400)["param"] == "x-thumbwheel-user"
        assert (await client.get("/v1/models", headers=by(chat) | {"host": "chat.example"})).status_code == 200


async def test_a_callers_limits_hold_for_both_doors_together(settings: MakeConfig, run_server: Any, key: Any) -> None:
    config = with_security(settings(), auth="keys")
    async with run_server(config, ScriptedEngine()) as server, web(server) as client:
        secret = await key("ada", SCOPE_CHAT, limits=Limits(requests_per_minute=2))
        message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
        call = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message]))
        await server.chat.Chat(call, metadata=(("authorization", f"Bearer {secret}"),))
        await complete(client, ask(), headers=by(secret))
        response = await client.post(CHAT, json=ask(), headers=by(secret))
        assert "2 calls a minute" in error(response, 429)["message"]
        assert int(response.headers["retry-after"]) >= 1


async def test_callers_without_keys_name_themselves_as_over_grpc(server: Any) -> None:
    async with web(server) as client:
        body = await complete(client, ask(), headers={"x-thumbwheel-user": "ada"})
        assert error(await rate(client, response_id=body["id"], thumb="up"), 403), "this one is nobody"
        sent = {"response_id": body["id"], "thumb": "up"}
        voted = await client.post("/v1/feedback", json=sent, headers={"x-thumbwheel-user": "ada"})
        assert voted.status_code == 200


async def test_what_is_no_call(server: Any) -> None:
    async with web(server) as client:
        assert error(await client.get("/v1/nothing"), 404)["message"] == "there is no /v1/nothing"
        assert error(await client.get("/nothing"), 404)
        assert error(await client.put(CHAT, json=ask()), 405)
        assert error(await client.post(CHAT, content=b"{", headers={"content-type": "application/json"}), 400)
        assert error(await client.post(CHAT, json=[1]), 400)["param"] == "body"
        assert error(await client.post(CHAT), 400)["param"] == "body"
        assert (await client.post(CHAT, json=ask())).status_code == 200


async def test_pages_of_other_sites_are_kept_out(server: Any) -> None:
    async with web(server) as client:
        origin = {"origin": "https://evil.example"}
        preflight = await client.options(CHAT, headers=origin | {"access-control-request-method": "POST"})
        answer = await client.post(CHAT, json=ask(), headers=origin)
        for response in (preflight, answer):
            assert not [name for name in response.headers if name.startswith("access-control")]
        assert preflight.status_code == 405
        simple = await client.post(CHAT, content=json.dumps(ask()), headers=origin | {"content-type": "text/plain"})
        assert error(simple, 415)
        for host in ("evil.example", "evil.example:8080", "127.0.0.1.evil.example"):
            assert error(await client.post(CHAT, json=ask(), headers={"host": host}), 403)
        for host in ("localhost", "localhost:1", "127.0.0.1:8080", "[::1]:8080", "[::1]"):
            assert (await client.get("/v1/models", headers={"host": host})).status_code == 200


async def test_a_body_beyond_the_limit_is_not_read(server: Any) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(33):
            yield b" " * (32 << 10)

    async with web(server) as client, connection(server) as (reader, writer):
        head = {"content-type": "application/json"}
        assert error(await client.post(CHAT, content=endless(), headers=head), 413)["code"] == "request_too_large"
        writer.write(request(ask(), content_length="2000000")[:200])
        assert b" 413 " in await reader.readline(), "said before it has come"
        assert (await reader.read()).endswith(b"}"), "and closed"
        assert (await client.post(CHAT, json=ask() | {"metadata": {"a": "x" * 900_000}})).status_code == 200


async def test_who_sends_slowly_is_cut(settings: MakeConfig, run_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_boundary, "BODY_SECONDS", 0.3)
    async with run_server(settings(), ScriptedEngine()) as server:
        async with connection(server) as (reader, _), asyncio.timeout(5):
            assert await closed(reader), "said nothing"
        async with connection(server) as (reader, writer), asyncio.timeout(5):
            cut = asyncio.create_task(closed(reader))
            writer.write(b"GET /v1/models HTTP/1.1\r\nx: ")
            while not cut.done():
                writer.write(b"y")
                await asyncio.wait((cut,), timeout=0.02)
            assert cut.result(), "a head that trickles"
        async with connection(server) as (reader, writer), asyncio.timeout(5):
            whole = request(ask())
            writer.write(whole[:-10])
            assert b" 408 " in await reader.readline()
            assert await reader.read(), "and closed"
        async with connection(server) as (reader, writer), asyncio.timeout(5):
            writer.write(request(ask()))
            assert b" 200 " in await reader.readline()
            await reader.readuntil(b"}}")
            writer.write(request(ask())[:20])  # the second request of a connection is no better
            assert await closed(reader)


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the server closes the connection, saying nothing more."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True


async def test_a_head_without_end_is_refused(server: Any) -> None:
    async with connection(server) as (reader, writer), asyncio.timeout(5):
        head = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx: "
        writer.write(head + b"y" * (http_connection.MAX_HEAD + 1 - len(head)))
        assert b" 400 " in await reader.readline()
    async with connection(server) as (reader, writer), asyncio.timeout(5):
        writer.write(b"nonsense\r\n\r\n")
        assert b" 400 " in await reader.readline()
    async with web(server) as client:
        assert (await client.get("/v1/models", headers={"x-long": "y" * 20_000})).status_code == 200


async def test_a_connection_serves_many_calls(server: Any) -> None:
    async with connection(server) as (reader, writer), asyncio.timeout(10):
        for _ in range(3):
            writer.write(request(ask()))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 200 " in head
            assert b"\r\ndate: " in head
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["object"] == "chat.completion"
        writer.write(request(ask()) + request(ask(stream=True)))  # the second before the first is answered
        said = await reader.readuntil(b"[DONE]")
        assert (said.count(b"HTTP/1.1 200 OK"), b"chat.completion.chunk" in said) == (2, True)


async def test_draining_finishes_answers_and_takes_no_new_ones(
    settings: MakeConfig, run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 50)
    async with run_server(settings(drain=20), engine) as server, web(server) as old, web(server) as fresh:
        assert (await old.get("/v1/models")).status_code == 200
        engine.resume.clear()
        running = asyncio.create_task(chunks(old, ask()))
        await until(lambda: bool(engine.running))
        server.stop.set()
        await until(lambda: value("thumbwheel_running_calls") == 1)
        async with asyncio.timeout(10):
            while (response := await fresh.get("/v1/models")).status_code == 200:
                pass
        assert error(response, 503)["message"] == "this server is stopping"
        assert response.headers["connection"] == "close"
        assert not server.task.done()
        engine.resume.set()
        sent = await running
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in sent) == "x" * 50
        await asyncio.wait((server.task,), timeout=10)
        assert server.task.done()
        with pytest.raises(httpx.ConnectError):
            await fresh.get("/v1/models")


async def test_an_answer_beyond_the_drain_is_cut(settings: MakeConfig, run_server: Any, until: Until) -> None:
    engine = ScriptedEngine()
    engine.resume.clear()
    async with run_server(settings(drain=0.2), engine) as server, connection(server) as (reader, writer):
        writer.write(request(ask(stream=True)))
        await reader.readuntil(b'"role":"assistant"')
        server.stop.set()
        await asyncio.wait((server.task,), timeout=10)
        assert server.task.done()
        assert not engine.running
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await reader.readuntil(b"[DONE]")


async def test_over_tls(settings: MakeConfig, run_server: Any, certificates: Any) -> None:
    one, two = certificates("one"), certificates("two")
    config = with_security(settings(), tls_certificate=one.chain, tls_key=one.key)
    async with run_server(config, ScriptedEngine()) as server:
        address = f"https://{server.addresses.web}"
        async with httpx.AsyncClient(base_url=address, verify=ssl.create_default_context(cafile=one.ca)) as client:
            assert await complete(client, ask())
            assert await chunks(client, ask())
        async with httpx.AsyncClient(base_url=address) as stranger:
            with pytest.raises(httpx.ConnectError):
                await stranger.get("/v1/models")
        async with web(server) as plain:
            with pytest.raises(httpx.TransportError):
                await plain.get("/v1/models")
        first = await shown(server, one.ca)
        for old, new in ((one.key, two.key), (one.chain, two.chain)):
            replace(old, new)
        assert await shown(server, one.ca) != first, "a new certificate counts without a restart"


async def test_with_mutual_tls_callers_need_a_certificate_too(
    settings: MakeConfig, run_server: Any, certificates: Any
) -> None:
    one, known = certificates("one"), certificates("caller")
    config = with_security(settings(), tls_certificate=one.chain, tls_key=one.key, tls_client_ca=known.ca)
    async with run_server(config, ScriptedEngine()) as server:
        address, context = f"https://{server.addresses.web}", ssl.create_default_context(cafile=one.ca)
        async with httpx.AsyncClient(base_url=address, verify=context) as client:
            with pytest.raises(httpx.TransportError):
                await client.get("/v1/models")
        context = ssl.create_default_context(cafile=one.ca)
        context.load_cert_chain(known.chain, known.key)
        async with httpx.AsyncClient(base_url=address, verify=context) as client:
            assert (await client.get("/v1/models")).status_code == 200


async def shown(server: Any, ca: str) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=ca)
    async with connection(server, ssl=context) as (_, writer):
        certificate: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        return certificate


def replace(old: str, new: str) -> None:
    Path(old).write_bytes(Path(new).read_bytes())
    os.utime(old, ns=(1, 1))
