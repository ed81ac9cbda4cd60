"""TLS and mutual TLS over real sockets, and certificates that change under a running server."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.app import serve
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Client, Config
from thumbwheel.errors import SetupError
from thumbwheel.secret_files import client_pem

SERVING = health_pb2.HealthCheckResponse.SERVING


def with_tls(config: Config, certificate: Any, **more: str) -> Config:
    files = {"tls_certificate": certificate.chain, "tls_key": certificate.key, **more}
    return config.model_copy(update={"security": config.security.model_copy(update=files)})


async def health(address: str, client: Client | None, seconds: float = 5) -> int | None:
    """What the server says, or None if no connection comes about."""
    channel = (
        aio.insecure_channel(address)
        if client is None
        else aio.secure_channel(address, grpc.ssl_channel_credentials(*client_pem(client)))
    )
    async with channel:
        try:
            call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=seconds)
            return int((await call).status)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None


async def https(address: str, ca: str) -> tuple[int, bytes]:
    """Status of /healthz and the certificate that was shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=ca)
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.write(b"GET /healthz HTTP/1.0\r\n\r\n")
    status = int((await reader.readline()).split()[1])
    writer.close()
    return status, shown


async def test_callers_who_know_the_ca_get_in_and_others_do_not(
    settings: Callable[..., Config], run_server: Any, certificates: Any, tmp_path: Path
) -> None:
    one = certificates("one")
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    stranger = type(certificates)(other_folder)("stranger")
    async with run_server(with_tls(settings(), one), ScriptedEngine()) as server:
        for address in (server.addresses.grpc, server.addresses.admin):
            assert await health(address, Client(ca=one.ca)) == SERVING
            assert await health(address, Client(ca=stranger.ca), 1) is None
            assert await health(address, None, 1) is None
        assert (await https(server.addresses.http, one.ca))[0] == 200
        with pytest.raises(ssl.SSLError):
            await https(server.addresses.http, stranger.ca)
        # One who speaks plain HTTP, or nothing at all, holds up nobody.
        host, _, port = server.addresses.http.rpartition(":")
        silent = [await asyncio.open_connection(host, int(port)) for _ in range(20)]
        silent[0][1].write(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await https(server.addresses.http, one.ca))[0] == 200
        for _, writer in silent:
            writer.close()


async def test_with_mutual_tls_callers_need_a_certificate_too(
    settings: Callable[..., Config], run_server: Any, certificates: Any, tmp_path: Path
) -> None:
    one, caller = certificates("one"), certificates("caller")
    other_folder = tmp_path / "other"
    other_folder.mkdir()
    stranger = type(certificates)(other_folder)("stranger")
    config = with_tls(settings(), one, tls_client_ca=caller.ca)
    async with run_server(config, ScriptedEngine()) as server:
        known = Client(ca=one.ca, certificate=caller.chain, private_key=caller.key)
        assert await health(server.addresses.grpc, known) == SERVING
        assert await health(server.addresses.grpc, Client(ca=one.ca), 1) is None
        unknown = Client(ca=one.ca, certificate=stranger.chain, private_key=stranger.key)
        assert await health(server.addresses.grpc, unknown, 1) is None
        assert (await https(server.addresses.http, one.ca))[0] == 200, "probes have no certificate"


def replace(old: Any, new: Any) -> None:
    for target, source in ((old.key, new.key), (old.chain, new.chain)):
        Path(target).write_bytes(Path(source).read_bytes())
        os.utime(target, ns=(1, 1))


async def test_a_new_certificate_counts_without_a_restart(
    settings: Callable[..., Config], run_server: Any, certificates: Any
) -> None:
    one, two = certificates("one"), certificates("two")
    async with run_server(with_tls(settings(), one), ScriptedEngine()) as server:
        before = (await https(server.addresses.http, one.ca))[1]
        replace(one, two)
        status, after = await https(server.addresses.http, one.ca)
        assert status == 200
        assert after != before
        assert await health(server.addresses.grpc, Client(ca=one.ca)) == SERVING


async def no_engine(_: Config) -> Any:
    raise AssertionError("the engine must not be started")


async def test_a_certificate_that_cannot_be_used_is_said_before_the_engine_starts(
    settings: Callable[..., Config], certificates: Any
) -> None:
    one, other = certificates("one"), certificates("other")
    config = with_tls(settings(), one, tls_key=other.key)
    with pytest.raises(SetupError, match="a pair"):
        await serve(config, asyncio.Event(), start_engine=no_engine)


async def test_the_network_is_refused_without_keys_even_with_tls(
    settings: Callable[..., Config], certificates: Any
) -> None:
    with pytest.raises(SetupError, match="without keys and TLS"):
        await serve(with_tls(settings(host="0.0.0.0"), certificates("one")), asyncio.Event(), start_engine=no_engine)
