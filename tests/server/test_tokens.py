"""Short-lived tokens: a signature, an issuer, an audience and a time, or no entry."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from grpc import aio

from server.engine_scripted import ScriptedEngine
from server.tokens import Tokens
from thumbwheel.config import Config, Security
from thumbwheel.errors import NotAuthenticated, SetupError
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, models_pb2, record_pb2

KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())

Change = Callable[[dict[str, Any]], object]


def key_set(*keys: tuple[str, ec.EllipticCurvePrivateKey]) -> str:
    of = jwt.algorithms.ECAlgorithm.to_jwk
    return json.dumps({"keys": [{**of(key.public_key(), as_dict=True), "kid": name} for name, key in keys]})


def token(change: Change = lambda claims: None, key: Any = KEY, kid: str = "one", algorithm: str = "ES256") -> str:
    claims = {
        "sub": "ada", "iss": "https://issuer", "aud": "thumbwheel", "exp": time.time() + 60, "scope": "chat rate admin",
    }  # fmt: skip
    change(claims)
    return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": kid})


def settings_of(keys: str, **more: str) -> Security:
    facts = {"auth": "keys", "jwt_keys": keys, "jwt_issuer": "https://issuer", "jwt_audience": "thumbwheel"}
    return Security.model_validate(facts | more)


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_text(key_set(("one", KEY)))
    return path


async def test_a_good_token_tells_user_tenant_and_scopes(jwks: Path) -> None:
    tokens = Tokens(settings_of(str(jwks)))
    found = await tokens.check(token())
    assert found.scopes == {"chat", "rate"}, "what tokens may not give stays out"
    other_issuer = Tokens(settings_of(str(jwks), jwt_issuer="https://else"))
    foreign = await other_issuer.check(token(lambda claims: claims.update(iss="https://else")))
    assert (found.user, found.issuer) != (foreign.user, foreign.issuer), "the same name of two issuers is two people"
    shared = [
        await tokens.check(token(lambda claims, name=name: claims.update(sub=name, tenant="acme")))
        for name in ("ada", "bob")
    ]
    assert shared[0].tenant == shared[1].tenant
    assert shared[0].user != shared[1].user
    assert found.tenant not in (shared[0].tenant, (await tokens.check(token(lambda c: c.update(sub="bob")))).tenant)


BAD: dict[str, tuple[Change, dict[str, Any]]] = {
    "expired": (lambda claims: claims.update(exp=time.time() - 60), {}),
    "not yet": (lambda claims: claims.update(nbf=time.time() + 60), {}),
    "no end": (lambda claims: claims.pop("exp"), {}),
    "no subject": (lambda claims: claims.pop("sub"), {}),
    "issuer": (lambda claims: claims.update(iss="https://else"), {}),
    "no issuer": (lambda claims: claims.pop("iss"), {}),
    "audience": (lambda claims: claims.update(aud="else"), {}),
    "no audience": (lambda claims: claims.pop("aud"), {}),
    "signature": (lambda claims: None, {"key": OTHER}),
    "unknown key": (lambda claims: None, {"kid": "two"}),
    "shared secret": (lambda claims: None, {"key": "s" * 32, "algorithm": "HS256"}),
    "unsigned": (lambda claims: None, {"key": None, "algorithm": "none"}),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_token_is_refused(jwks: Path, name: str) -> None:
    change, facts = BAD[name]
    with pytest.raises(NotAuthenticated, match="not valid"):
        await Tokens(settings_of(str(jwks))).check(token(change, **facts))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "eyJhbGciOiJFUzI1NiJ9.e30.AAAA"])
async def test_what_is_no_token_is_refused(jwks: Path, text: str) -> None:
    with pytest.raises(NotAuthenticated):
        await Tokens(settings_of(str(jwks))).check(text)


async def test_a_new_key_in_the_file_counts_at_once(jwks: Path) -> None:
    tokens = Tokens(settings_of(str(jwks)))
    fresh = token(key=OTHER, kid="two")
    with pytest.raises(NotAuthenticated):
        await tokens.check(fresh)
    await asyncio.to_thread(jwks.write_text, key_set(("two", OTHER)))
    await tokens.check(fresh)
    with pytest.raises(NotAuthenticated):
        await tokens.check(token())


@pytest.mark.parametrize("content", [None, "", "no json", "{}", '{"keys": []}'])
def test_a_file_that_is_no_key_set_is_said_at_the_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "jwks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SetupError, match=r"security\.jwt_keys"):
        Tokens(settings_of(str(path)))


@pytest.fixture
def issuer() -> Iterator[tuple[str, list[str]]]:
    """Address of a key set over HTTP, and the keys' names that it serves now."""
    names = ["one"]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = key_set(*[(name, {"one": KEY, "two": OTHER}[name]) for name in names]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/jwks.json", names
        server.shutdown()


async def test_keys_over_http_and_their_rotation(issuer: tuple[str, list[str]]) -> None:
    address, names = issuer
    tokens = Tokens(settings_of(address))
    await tokens.check(token())
    names[:] = ["one", "two"]
    assert tokens._remote is not None
    tokens._remote.cooldown_duration = 0  # as if some time had passed: issuers publish a key before they use it
    await tokens.check(token(key=OTHER, kid="two"))
    with pytest.raises(NotAuthenticated):
        await tokens.check(token(key=rsa.generate_private_key(65537, 2048), kid="three", algorithm="RS256"))


async def test_an_issuer_that_is_away_refuses_and_does_not_hang() -> None:
    with pytest.raises(NotAuthenticated):
        await Tokens(settings_of("http://127.0.0.1:1/jwks.json")).check(token())


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any, jwks: Path) -> AsyncIterator[Any]:
    config = settings()
    closed = config.model_copy(update={"security": settings_of(str(jwks), requests_per_minute="3")})
    async with run_server(closed, ScriptedEngine()) as server:
        yield server


async def test_an_application_names_its_users_by_tokens(server: Any) -> None:
    def by(user: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {token(lambda claims: claims.update(sub=user))}"),)

    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    ask = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message]))
    [answer] = (await server.chat.Chat(ask, metadata=by("ada"))).answers

    def vote() -> feedback_pb2.RateRequest:
        return feedback_pb2.RateRequest(
            response_id=answer.receipt.response_id, idempotency_key="k", thumb=record_pb2.THUMB_UP
        )

    with pytest.raises(aio.AioRpcError) as refused:
        await server.feedback.Rate(vote(), metadata=by("bob"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await server.feedback.Rate(vote(), metadata=by("ada"))
    with pytest.raises(aio.AioRpcError) as refused:
        await server.models.ListVersions(models_pb2.ListVersionsRequest(), metadata=by("ada"))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    # A token has no limits of its own, so the server's count, by user and not by token.
    await server.chat.Chat(ask, metadata=by("ada"))
    with pytest.raises(aio.AioRpcError) as refused:
        await server.chat.Chat(ask, metadata=by("ada"))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await server.chat.Chat(ask, metadata=by("cleo"))
