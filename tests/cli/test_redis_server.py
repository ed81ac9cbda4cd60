from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis as redis_client

from cli import redis_server
from thumbwheel.config import Config, Redis
from thumbwheel.errors import SetupError


@contextmanager
def running(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        redis_server.command(redis_server.find_binary(), folder), stdout=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 20
            while not asyncio.run(redis_server.answers(folder)):
                assert time.monotonic() < deadline
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(0.02)
            yield process
        finally:
            process.kill()


def fake(folder: Path, name: str, version: str) -> Path:
    """An executable that has no more of a Redis than its version."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho '{version}'\n")
    file.chmod(0o755)
    return file


def test_what_is_written_is_there_after_kill_9(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with running(folder) as process:
        with redis_client.Redis.from_url(redis_server.url(folder)) as client:
            client.set("key", "value")
            settings = client.config_get("append*")
            assert settings["appendfsync"] == "always"
            assert settings["appendonly"] == "yes"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
        process.kill()
    with running(folder), redis_client.Redis.from_url(redis_server.url(folder)) as client:
        assert client.get("key") == b"value"


def test_socket_is_private(tmp_path: Path) -> None:
    with running(tmp_path / "redis"):
        assert redis_server.socket_path(tmp_path / "redis").stat().st_mode & 0o077 == 0
        assert (tmp_path / "redis").stat().st_mode & 0o077 == 0


def test_long_path_gets_a_short_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "run"
    runtime.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    folder = tmp_path / ("long" * 30) / "redis"
    socket = redis_server.socket_path(folder)
    assert socket.is_relative_to(runtime)
    assert socket == redis_server.socket_path(folder), "the same at every start"
    assert socket != redis_server.socket_path(tmp_path / ("long" * 31) / "redis")
    with running(folder), redis_client.Redis.from_url(redis_server.url(folder)) as client:
        assert client.ping()


def test_short_socket_is_not_put_into_an_open_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / f"thumbwheel-{os.getuid()}").mkdir(mode=0o777)
    (tmp_path / f"thumbwheel-{os.getuid()}").chmod(0o777)
    with pytest.raises(SetupError, match="not a private folder"):
        redis_server.socket_path(tmp_path / ("long" * 30))


def test_nobody_answers(tmp_path: Path) -> None:
    assert not asyncio.run(redis_server.answers(tmp_path))


@pytest.mark.parametrize(
    ("said", "major"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=d81b8ff71cfb150e", 7),
        ("Redis server v=6.2.14 sha=00000000:0 malloc=libc bits=64", 6),
        ("Valkey server v=8.1.0 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64", 8),
        ("something else", None),
    ],
)
def test_version(tmp_path: Path, said: str, major: int | None) -> None:
    assert redis_server.major_version(fake(tmp_path, "server", said)) == major


def test_server_on_path_is_taken_if_new_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    packaged = redis_server.find_binary()
    assert packaged.name == "valkey-server"
    assert not packaged.is_relative_to(tmp_path)

    fake(tmp_path, "redis-server", "Redis server v=6.2.14 sha=0")
    assert redis_server.find_binary() == packaged, "too old"
    valkey = fake(tmp_path, "valkey-server", "Valkey server v=7.2.5 sha=0")
    assert redis_server.find_binary() == valkey
    new = fake(tmp_path, "redis-server", "Redis server v=7.4.0 sha=0")
    assert redis_server.find_binary() == new


def test_named_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    assert redis_server.named_url(Config()) == "redis://elsewhere:6379/0"
    assert redis_server.named_url(Config(redis=Redis(url="redis://here/1"))) == "redis://here/1"
    monkeypatch.delenv("REDIS_URL")
    assert redis_server.named_url(Config()) == ""


async def test_url_that_nobody_answers(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis://127.0.0.1:{unused_tcp_port}/0"
    with pytest.raises(SetupError, match="REDIS_URL names it"):
        await redis_server.check_url(Config(), url)


async def test_url_that_answers(redis_url: str) -> None:
    await redis_server.check_url(Config(), redis_url)
    with redis_client.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0, "a check changes nothing"
