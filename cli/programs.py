"""The programs that make up thumbwheel on one machine: how they are called, and what tells that they answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from cli import redis_server
from cli.supervisor import Program
from thumbwheel.config import ENV_PREFIX, Config
from thumbwheel.perimeter import reachable

REDIS_GRACE = 1.0
"""Seconds; everything is on disk already."""
LEARNER_GRACE = 1.5
"""Seconds; every step of a cycle is safe to kill."""
SERVER_SLACK = 1.0
"""Seconds beyond `server.drain` until the server has closed its engine."""


def redis(settings: Config, binary: Path) -> Program:
    folder = settings.data_dir / "redis"
    return Program(
        name="redis",
        command=redis_server.command(binary, folder),
        environment=os.environ,
        log=settings.data_dir / "logs" / "redis.log",
        ready=functools.partial(redis_server.answers, folder),
        grace=REDIS_GRACE,
    )


def server(settings: Config) -> Program:
    return Program(
        name="server",
        command=server_command(),
        environment=server_environment(settings),
        log=settings.data_dir / "logs" / "server.log",
        ready=functools.partial(http_ok, settings.server.host, settings.server.http_port, "/readyz", tls=tls(settings)),
        grace=settings.server.drain + SERVER_SLACK,
    )


def learner(settings: Config) -> Program:
    return Program(
        name="learner",
        command=learner_command(),
        environment=learner_environment(settings),
        log=settings.data_dir / "logs" / "learner.log",
        ready=functools.partial(
            http_ok, settings.learner.http_host, settings.learner.http_port, "/healthz", tls=tls(settings)
        ),
        grace=LEARNER_GRACE,
    )


def server_command() -> list[str]:
    return _module("server")


def learner_command(once: bool = False) -> list[str]:
    return [*_module("learner"), *(["--once"] if once else [])]


def server_environment(settings: Config) -> dict[str, str]:
    return _environment(settings) | _threads(settings.server.threads)


def learner_environment(settings: Config) -> dict[str, str]:
    # Its threads wait as the engine's do; spinning longer would take the engine's cores, however far it stands back.
    waits = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}
    return waits | _environment(settings) | _threads(settings.learner.threads)


def _module(name: str) -> list[str]:
    # -P: not the working directory's idea of the name. No file: the environment below says everything.
    return [sys.executable, "-P", "-m", name, "--config", os.devnull]


def _environment(settings: Config) -> dict[str, str]:
    """This process' environment with the whole configuration in it: complete, and secrets stay out of `ps`."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
    return inherited | {ENV_PREFIX + "__".join(path).upper(): text for path, text in _leaves(settings, ())}


def _leaves(section: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), str(value)


def _threads(configured: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(configured or len(os.sched_getaffinity(0)))}


def tls(settings: Config) -> bool:
    """Whether its listeners speak it."""
    return bool(settings.security.tls_certificate)


async def http_ok(host: str, port: int, path: str, *, tls: bool) -> bool:
    """One GET to a process of ours; True if the answer is 200."""
    context = None
    if tls:
        context = ssl.create_default_context()
        # Whether it is up is all that is asked, of an address of our own: its name may be another.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(reachable(host).strip("[]"), port, ssl=context)
            try:
                writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                status = await reader.readline()
                return status.split()[1:2] == [b"200"]
            finally:
                writer.close()
    return False
