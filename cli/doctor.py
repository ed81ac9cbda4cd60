"""``thumbwheel doctor``: looks at everything that has to be right, and says what to mend.

It mends nothing itself, and works beside a running thumbwheel as well as without one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from cli import base_model, instance, preflight, programs, redis_server
from cli.options import ConfigFile, DataDir, Overrides, resolve
from server import adapters
from thumbwheel import artifacts
from thumbwheel.config import Config
from thumbwheel.errors import AdapterRefused, NotFound, SetupError, ThumbwheelError
from thumbwheel.freeze import Brake
from thumbwheel.lease import is_led
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import VERSION_STATE_RETIRED

CLOCK_SECONDS = 2.0
"""Largest difference to the store's clock that does no harm: leases last longer, votes are ordered by the store."""
RETIRED = 2
"""Newest retired versions whose files are looked at beside the live one's: a rollback would go to one of them."""
LEADER_SECONDS = 20.0
"""How long a thumbwheel that runs here may take until its learner leads: it reads the model first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. What is wrong says what to do on its following lines."""

    subject: str
    sound: bool
    words: str


def doctor(config: ConfigFile = None, set_: Overrides = None, data_dir: DataDir = None) -> None:
    """Looks at configuration, disk, model, store, versions and clock, and says what to mend."""
    console = Console(highlight=False)
    findings = asyncio.run(_examine(config, set_, data_dir, lambda finding: _show(finding, console)))
    bad = sum(not finding.sound for finding in findings)
    console.print(f"\n{bad} to mend" if bad else "\nall is well")
    if bad:
        raise typer.Exit(1)


def _show(finding: Finding, console: Console) -> None:
    sign = Text("ok  ", "green") if finding.sound else Text("bad ", "bold red")
    console.print(Text.assemble(sign, f"{finding.subject:<15}", finding.words), soft_wrap=True)


async def _examine(
    file: Path | None, sets: list[str] | None, data_dir: Path | None, show: Callable[[Finding], None]
) -> list[Finding]:
    findings: list[Finding] = []

    def found(subject: str, words: str, sound: bool = True) -> None:
        findings.append(Finding(subject, sound, words))
        show(findings[-1])

    async def look(subject: str, check: Callable[[], Awaitable[str]]) -> None:
        try:
            found(subject, await check())
        except (ThumbwheelError, OSError) as error:
            found(subject, str(error), sound=False)

    try:
        settings = resolve(file, sets, data_dir)
    except SetupError as error:
        found("configuration", str(error), sound=False)
        return findings  # nothing else is known
    found("configuration", "every key is known and every value is allowed")
    await look("disk", lambda: _disk(settings))
    await look("model", lambda: _model(settings))
    running = instance.find(settings.data_dir)
    await look("server", lambda: _server(running))
    url = redis_server.named_url(settings) or (running.redis_url if running else "")
    if not url:
        await look("store", _own_store)
        return findings
    try:
        async with _open(url, settings) as store:
            await look("store", lambda: _durable(store))
            await look("clock", lambda: _clock(store))
            await look("learner", lambda: _learner(store, LEADER_SECONDS if running else 0.0))
            await look("versions", lambda: _versions(store, settings))
    except SetupError as error:
        found("store", f"{error}\n  start it, or name another: REDIS_URL=redis://HOST:6379/0", sound=False)
    return findings


async def _disk(settings: Config) -> str:
    folder = settings.data_dir
    while not folder.exists():  # `thumbwheel up` will make it
        folder = folder.parent
    preflight.check_writable(folder)
    preflight.check_disk(folder, preflight.ROOM + base_model.room(settings))
    return f"{settings.data_dir} can be written and has room"


async def _model(settings: Config) -> str:
    base_model.check(settings)
    if not base_model.is_prepared(settings):
        return f"{settings.model.path}: fetched or prepared at the first start"
    folder = _adapted(settings)
    shape = await asyncio.to_thread(adapters.BaseShape.read, folder)
    if not shape.matrices:
        raise SetupError(f"{folder} has no layers that LoRA could change: it can serve and not learn")
    return f"{folder} is whole, {len(shape.matrices)} matrices may be adapted"


def _adapted(settings: Config) -> Path:
    """The folder of what adapters are made for, of a model that is prepared."""
    return base_model.ensure(settings, Console(stderr=True)).model.adapted


async def _server(running: instance.Instance | None) -> str:
    if running is None:
        return "none runs in this data directory"
    host, _, port = running.http.rpartition(":")
    if not await programs.http_ok(host, int(port), "/readyz", tls=bool(running.client.get("ca"))):
        raise SetupError(
            f"the server at {running.http} does not answer\n  see logs/server.log, or stop and start `thumbwheel up`"
        )
    return f"answers at {running.grpc}"


async def _own_store() -> str:
    return f"`thumbwheel up` will start {redis_server.find_binary()}, with every write on disk before its answer"


@asynccontextmanager
async def _open(url: str, settings: Config) -> AsyncIterator[Store]:
    store = await Store.open(url, settings.redis.namespace, settings.redis.password_file)
    try:
        yield store
    finally:
        await store.close()


async def _durable(store: Store) -> str:
    found = await store.durability()
    if found.evicts:
        raise SetupError("it may evict votes when it is full\n  set maxmemory-policy noeviction")
    if not found.durable:
        raise SetupError(
            f"a vote's OK may be lost when the machine fails (appendfsync is {found.fsync})\n"
            "  set appendonly yes and appendfsync always, or use Redis 8 or newer, which can wait for the disk"
        )
    return "every vote is on disk before its answer"


async def _clock(store: Store) -> str:
    seconds, micros = await store.call("TIME")
    off = time.time() - (int(seconds) + int(micros) / 1e6)
    if abs(off) > CLOCK_SECONDS:
        raise SetupError(f"this machine's clock is {off:+.1f} s off the store's\n  set both by NTP")
    return f"within {abs(off):.1f} s of the store's"


async def _learner(store: Store, patience: float) -> str:
    frozen = await Brake(store).frozen()
    if frozen:
        wires = ", ".join(each.wire for each in frozen.tripped)
        raise SetupError(f"a tripwire has frozen it ({wires}), so votes wait\n  `thumbwheel unfreeze` shows why")
    deadline = time.monotonic() + patience
    while not await is_led(store):
        if time.monotonic() >= deadline:
            raise SetupError(
                "no learner leads, so votes wait\n"
                "  start one (`thumbwheel up` or `thumbwheel learn`); if one runs, logs/learner.log says why"
            )
        await asyncio.sleep(0.2)
    return "one leads"


async def _versions(store: Store, settings: Config) -> str:
    """The files of the live version and of those before it are what was published, and fit the base."""
    registry = Registry(store)
    live = await registry.live()
    records, _ = await registry.page(100)
    retired = [record for record in records if record.path and record.state == VERSION_STATE_RETIRED][:RETIRED]
    serving = [*([live] if live.path else []), *retired]
    if serving and base_model.is_prepared(settings):
        base = await asyncio.to_thread(adapters.BaseShape.read, _adapted(settings))
        for record in serving:
            try:
                manifest = await asyncio.to_thread(artifacts.verify_version, settings.artifact_root, record)
                folder = settings.artifact_root / record.path
                await asyncio.to_thread(adapters.verify, folder, manifest["facts"], base, settings.server)
            except (AdapterRefused, NotFound) as error:
                raise SetupError(
                    f"{error}\n  bring {settings.artifact_root / record.path} back from a backup, or roll back"
                ) from error
    return f"{live.name} is live; {len(serving)} looked at, whole and for this base"
