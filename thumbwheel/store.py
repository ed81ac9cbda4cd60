"""The connection to Redis: every command and script goes through here, and every refusal comes out as one error.

The client repeats a command once when the connection breaks, so a command may have run although its first answer was
lost. Whatever changes something is therefore written so that running it twice is the same as once.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.resources
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from thumbwheel.errors import SetupError, StoreUnavailable
from thumbwheel.keys import Keys
from thumbwheel.secret_files import read_secret

Value = str | bytes | int | float
Command = tuple[Value, ...]
ScriptCall = tuple[Sequence[str], Sequence[Value]]
"""Keys and arguments."""

ANSWER_SECONDS: Final = 2.0
"""The longest that one command may take: chat waits for the turn log no longer than this."""
FSYNC_MS: Final = 1500
"""The longest wait for the disk; shorter than ANSWER_SECONDS, so that Redis' own verdict is heard."""
LOADING_SECONDS: Final = 30.0
"""How long opening waits for a Redis that is reading its file."""
_CONNECTIONS: Final = 64
_REFUSALS: Final = ("OOM", "MISCONF", "READONLY", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN")


@dataclass(frozen=True, slots=True)
class Durability:
    """What the store promises.

    `fsync` is "always", "everysec", "no", "off" (no append-only file) or "unknown" (it would not say); `wait_aof`, that
    every vote waits for its fsync.
    """

    fsync: str
    persistent: bool
    evicts: bool
    wait_aof: bool

    @property
    def durable(self) -> bool:
        """True if an answer means that the write is on disk and stays there."""
        return self.persistent and not self.evicts and (self.fsync == "always" or self.wait_aof)


class Store:
    """One namespace of one Redis. Everything it raises for an absent or refusing Redis is StoreUnavailable.

    `failures` counts those.
    """

    def __init__(self, client: Redis, url: str, namespace: str) -> None:
        self.keys = Keys(namespace)
        self.failures = 0
        self._client = client
        self._url = url
        self._wait_aof = False

    @classmethod
    async def open(cls, url: str, namespace: str, password_file: str = "") -> Store:
        """Connects, waits while Redis loads its file, and checks its version.

        Args:
            password_file: of the user that the URL names; "": the URL says all.

        Raises:
            SetupError: nobody answers there, it is older than Redis 7, or the password cannot be read.
        """
        if password_file:
            url = _with_password(url, read_secret(password_file, "redis.password_file"))
        try:
            client = _connect(url, ANSWER_SECONDS, _CONNECTIONS)
        except ValueError as error:
            raise SetupError(f"the Redis URL is not valid: {error}") from error
        store = cls(client, url, namespace)
        try:
            info = await store._wait_loaded()
            major = int(info.get("redis_version", "0").split(".")[0])
            if major < 7:
                raise SetupError(f"Redis {info.get('redis_version')} is too old: thumbwheel needs Redis or Valkey 7")
            await store.durability()
        except StoreUnavailable as error:
            await store.close()
            raise SetupError(f"Redis does not answer: {error.__cause__}") from error
        except exceptions.ResponseError as error:
            await store.close()
            raise SetupError(f"Redis refuses what thumbwheel needs: {error}") from error
        except SetupError:
            await store.close()
            raise
        return store

    async def close(self) -> None:
        await self._client.aclose()

    async def durability(self) -> Durability:
        """Asks Redis what it promises now."""
        info = {**await self._info("persistence"), **await self._info("memory")}
        persistent = info.get("aof_enabled") == "1"
        fsync = "off"
        if persistent:
            try:
                fsync = (await self.call("CONFIG", "GET", "appendfsync"))[1].decode()
            except (exceptions.ResponseError, IndexError):  # hosted Redis often hides CONFIG
                fsync = "unknown"
        known = await self.call("COMMAND", "INFO", "WAITAOF")
        evicts = info.get("maxmemory", "0") != "0" and info.get("maxmemory_policy") != "noeviction"
        # "always" needs no wait, and with "no" the wait would never end.
        self._wait_aof = persistent and fsync in ("everysec", "unknown") and bool(known and known[0])
        return Durability(fsync, persistent, evicts, self._wait_aof and _waits(await self._info("server")))

    async def call(self, *command: Value) -> Any:
        """One command; the reply as RESP2 has it (bytes, int, None, list).

        Raises:
            StoreUnavailable: Redis is away or refuses.
            redis.exceptions.ResponseError: the command itself is wrong.
        """
        with self._translated():
            return await self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    async def batch(self, commands: Sequence[Command]) -> list[Any]:
        """Several commands on one connection in one round trip, in order, not atomic. Raises as `call` does."""
        with self._translated():
            replies = await self._send(commands)
            for reply in replies:
                if isinstance(reply, exceptions.RedisError):
                    raise reply
        return replies

    async def script(self, name: str, keys: Sequence[str], args: Sequence[Value], *, durable: bool = False) -> Any:
        """Runs ``lua/<name>.lua`` atomically.

        Args:
            durable: return only when what it wrote is on disk, as far as this Redis can say.

        Raises:
            StoreUnavailable: Redis is away or refuses, or (if durable) did not reach its disk in time.
        """
        (reply,) = await self.scripts(name, [(keys, args)], durable=durable)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def scripts(self, name: str, calls: Sequence[ScriptCall], *, durable: bool = False) -> list[Any]:
        """Runs a script several times in one round trip, each time atomically; waits for the disk once.

        Returns:
            For every call its reply, or its own StoreUnavailable or ResponseError. Raises as `script` does for all.
        """
        digest, source = _source(name)
        commands: list[Command] = [("EVALSHA", digest, len(keys), *keys, *args) for keys, args in calls]
        waits = durable and self._wait_aof
        if waits:  # it speaks for the writes of its own connection, so it must travel with them
            commands.append(("WAITAOF", 1, 0, FSYNC_MS))
        with self._translated():
            replies = await self._send(commands)
            if any(isinstance(reply, exceptions.NoScriptError) for reply in replies):
                await self.call("SCRIPT", "LOAD", source)
                replies = await self._send(commands)
            reached = replies.pop() if waits else [1]
            if isinstance(reached, exceptions.RedisError):
                raise reached
        if reached[0] < 1:
            self.failures += 1
            raise StoreUnavailable("the store has not reached its disk yet; try again")
        return [self._meant(reply) if isinstance(reply, exceptions.ResponseError) else reply for reply in replies]

    @asynccontextmanager
    async def patient(self, seconds: float) -> AsyncIterator[Store]:
        """A store with a connection of its own, for commands that block for up to `seconds`."""
        store = Store(_connect(self._url, seconds + ANSWER_SECONDS, 1), self._url, "unused")
        store.keys = self.keys
        try:
            yield store
        finally:
            await store.close()

    async def _info(self, section: str) -> dict[str, str]:
        lines = (await self.call("INFO", section)).decode(errors="replace").splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    async def _wait_loaded(self) -> dict[str, str]:
        deadline = time.monotonic() + LOADING_SECONDS
        while True:
            try:
                await self.call("GET", self.keys.live)  # INFO answers while loading; data does not
                return await self._info("server")
            except StoreUnavailable as error:
                if not isinstance(error.__cause__, exceptions.BusyLoadingError) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """Replies in order, errors among them."""
        if not commands:
            return []
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    def _meant(self, error: exceptions.ResponseError) -> Exception:
        """StoreUnavailable if Redis refused; the error itself if the command was wrong."""
        if isinstance(error, exceptions.NoScriptError) or not _refused(error):
            return error
        self.failures += 1
        return StoreUnavailable("the store refuses writes; try again")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        task = asyncio.current_task()
        assert task is not None
        cancellations = task.cancelling()
        try:
            yield
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            self.failures += 1
            raise StoreUnavailable("the store does not answer; try again") from error
        except exceptions.ResponseError as error:
            meant = self._meant(error)
            if meant is error:
                raise
            raise meant from error
        finally:
            # The client sends through asyncio.wait_for, which on Python 3.11 loses a cancellation that arrives just as
            # it finishes. A loop around this call would then never end.
            if task.cancelling() > cancellations:
                raise asyncio.CancelledError


def _waits(server: dict[str, str]) -> bool:
    """True if WAITAOF can be believed.

    Before Redis 8, and in Valkey to this day, it may answer up to a second before the fsync: redis/redis#13793.
    """
    return "valkey_version" not in server and int(server.get("redis_version", "0").split(".")[0]) >= 8


def _refused(error: exceptions.ResponseError) -> bool:
    """True if Redis is full, read-only, busy or without a quorum; false if the command is wrong."""
    kinds = (exceptions.OutOfMemoryError, exceptions.ReadOnlyError, exceptions.ClusterError)
    return isinstance(error, kinds) or str(error).partition(" ")[0] in _REFUSALS


@functools.cache
def _source(name: str) -> tuple[str, str]:
    text = (importlib.resources.files("thumbwheel") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), text


def _with_password(url: str, password: str) -> str:
    """The URL with this password, for the user that it names or for the default one."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    user = quote(unquote(parts.username or ""), safe="")
    return urlunsplit(parts._replace(netloc=f"{user}:{quote(password, safe='')}@{place}"))


def _connect(url: str, timeout: float, connections: int) -> Redis:
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=ANSWER_SECONDS,
        socket_timeout=timeout,
        socket_connect_timeout=ANSWER_SECONDS,
        # A connection that a restart has broken is worth one more try; one that hangs is not.
        retry=Retry(ConstantBackoff(0.02), 1, supported_errors=(exceptions.ConnectionError,)),
        protocol=2,
    )
    client = Redis.from_pool(pool)
    client.response_callbacks.clear()  # replies come out as RESP2 has them, the same in every version of the client
    return client
