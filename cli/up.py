"""``thumbwheel up``: the whole of it on this machine.

checks ─► base model ─► Redis ─► server ─► learner ─► ready ─► ... ─► learner, server, Redis stopped in this order

Nothing is started before all checks have passed. The learner is started last because both would read the model at once,
and people wait only for the server; it is stopped first because it needs both others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from rich.console import Console

from cli import base_model, instance, local_keys, preflight, programs, redis_server, screen
from cli.config_toml import write
from cli.guard import Guard
from cli.instance import Instance
from cli.options import ConfigFile, DataDir, DryRun, Overrides, resolve
from cli.supervisor import Program, Supervised
from thumbwheel.config import Config
from thumbwheel.perimeter import reachable
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import VERSION_STATE_REJECTED, VersionRecord

STOP_SECONDS = 9.0
"""After this long everything that still runs is killed, so that all is over within 10 s."""


def up(config: ConfigFile = None, set_: Overrides = None, data_dir: DataDir = None, dry_run: DryRun = False) -> None:
    """Starts everything here: Redis, the server and the learner. Chat with it from another terminal."""
    started = time.monotonic()
    settings = resolve(config, set_, data_dir)
    if dry_run:
        print(write(settings), end="")
        return
    console = Console(highlight=False)
    with instance.claim(settings.data_dir):
        settings, redis_program = _check(settings)
        settings = base_model.ensure(settings, console)
        guard = Guard.start()
        try:
            asyncio.run(Up(settings, redis_program, guard, console, started).run())
        finally:
            guard.close()


def _check(settings: Config) -> tuple[Config, Program | None]:
    """Everything that can be known before something is started.

    Returns:
        The configuration with its ports and its Redis, and the Redis to start, if none is named.

    Raises:
        SetupError: what is wrong and what to do.
    """
    preflight.check_writable(settings.data_dir)
    preflight.check_perimeter(settings)
    preflight.check_rollouts(settings)
    settings = preflight.take_ports(settings)
    base_model.check(settings)
    preflight.check_disk(settings.data_dir, preflight.ROOM + base_model.room(settings))
    program = None
    url = redis_server.named_url(settings)
    if url:
        asyncio.run(redis_server.check_url(settings, url))
    else:
        program = programs.redis(settings, redis_server.find_binary())
        url = redis_server.url(settings.data_dir / "redis")
    # A server that drained longer than we wait would be killed with answers still to be logged.
    drain = min(settings.server.drain, STOP_SECONDS - programs.REDIS_GRACE - programs.SERVER_SLACK)
    return settings.model_copy(
        update={
            "redis": settings.redis.model_copy(update={"url": url}),
            "client": local_keys.for_learner(settings),
            "server": settings.server.model_copy(update={"drain": drain}),
        }
    ), program


class Up:
    """One run, from the first process to the last."""

    def __init__(
        self, settings: Config, redis_program: Program | None, guard: Guard, console: Console, started: float
    ) -> None:
        self._settings = settings
        self._console = console
        self._started = started
        self._say: Callable[[str], None] = functools.partial(screen.say, console)
        supervise = functools.partial(Supervised, guard=guard, say=self._say)
        self._redis = supervise(redis_program) if redis_program else None
        self._server = supervise(programs.server(settings))
        self._learner = supervise(programs.learner(settings))
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Until SIGINT, SIGTERM or SIGHUP, or until something cannot start.

        Raises:
            SetupError: that; the last lines of its log are in it.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        tasks = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._work())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self._stop()
        for task in done:
            task.result()

    async def _work(self) -> None:
        async with screen.waiting(self._console, "Starting the server; it loads the model ..."):
            if self._redis:
                await self._until_ready(self._redis)
            await local_keys.ensure(self._settings)
            await self._until_ready(self._server)
        redis = self._settings.redis
        store = await Store.open(redis.url, redis.namespace, redis.password_file)
        try:
            async with contextlib.aclosing(Registry(store).changes()) as changes:
                _, live = await anext(changes)
                self._announce(live)
                self._learner.start()
                await self._first_to_end(self._follow(changes, live))
        finally:
            await store.close()

    async def _until_ready(self, program: Supervised) -> None:
        program.start()
        await self._first_to_end(program.ready.wait())

    async def _first_to_end(self, work: Coroutine[Any, Any, Any]) -> None:
        """Waits for the work, or for a program that is given up, whose error it raises."""
        task = asyncio.create_task(work)
        kept = [each.task for each in self._programs() if each.task is not None]
        try:
            done, _ = await asyncio.wait([task, *kept], return_when=asyncio.FIRST_COMPLETED)
        finally:
            task.cancel()
            await asyncio.wait([task])  # it must be over before what it uses is closed
        for each in done:
            each.result()

    async def _follow(self, changes: AsyncIterator[tuple[VersionRecord, str]], live: str) -> None:
        """Says when another version goes live, and when one is refused."""
        async for record, now_live in changes:
            if now_live != live:
                self._say(f"version {now_live} is live (it was {live})")
                live = now_live
            if record.state == VERSION_STATE_REJECTED:
                self._say(f"version {record.name} was not released: {'; '.join(record.reasons) or 'no reason given'}")

    def _announce(self, live: str) -> None:
        server, learner = self._settings.server, self._settings.learner
        host = reachable(server.host)
        here = Instance(
            pid=os.getpid(),
            grpc=f"{host}:{server.grpc_port}",
            admin=f"{host}:{server.admin_port}",
            http=f"{host}:{server.http_port}",
            web=f"{host}:{server.web_port}",
            learner_http=f"{reachable(learner.http_host)}:{learner.http_port}",
            redis_url=self._settings.redis.url,
            client=self._settings.client.model_dump(exclude={"key_file"}),
        )
        instance.announce(self._settings.data_dir, here)
        screen.ready(self._console, self._settings, here, live, time.monotonic() - self._started)

    def _on_signal(self) -> None:
        """The first asks everything to end, the second ends it."""
        if self._stopping.is_set():
            for program in self._programs():
                program.kill()
        self._stopping.set()

    async def _stop(self) -> None:
        instance.withdraw(self._settings.data_dir)
        self._say("stopping ...")
        deadline = time.monotonic() + STOP_SECONDS
        # The learner is asked first: it would call a server that is leaving. Redis last: both write to it to the end.
        early = deadline - programs.REDIS_GRACE
        await asyncio.gather(self._learner.stop(early), self._server.stop(early))
        if self._redis:
            await self._redis.stop(deadline)
        self._say("stopped")

    def _programs(self) -> list[Supervised]:
        return [program for program in (self._learner, self._server, self._redis) if program]
