"""`thumbwheel keys`: makes, lists and revokes bearer keys, in the store itself: whoever may write there may do this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli import redis_server
from cli.options import ConfigFile, DataDir, Overrides, resolve
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials, is_valid
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import KeyRecord, Limits, Scope

T = TypeVar("T")

keys = typer.Typer(help="Make, list and revoke keys.", no_args_is_help=True)

Count = Annotated[int, typer.Option(min=0, help="0: what the server sets in [security].")]


class ScopeName(StrEnum):
    """What a key allows."""

    chat = "chat"
    rate = "rate"
    admin = "admin"
    learner = "learner"
    metrics = "metrics"
    erase = "erase"


@keys.command()
def add(
    user: Annotated[str, typer.Argument(help="Who calls with it. Several keys of one user are one rater.")],
    scope: Annotated[list[ScopeName], typer.Option("--scope", help="What it allows; may be given again.")],
    tenant: Annotated[
        str, typer.Option("--tenant", help="Whose prompts may share a cache with its own; default: only the user's.")
    ] = "",
    days: Annotated[
        float | None, typer.Option("--days", min=0, help="How long it is valid; default: for ever.")
    ] = None,
    requests_per_minute: Count = 0,
    concurrent_chats: Count = 0,
    tokens_per_minute: Count = 0,
    config: ConfigFile = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
) -> None:
    """Make a key. It is shown once and cannot be had again."""
    limits = Limits(
        requests_per_minute=requests_per_minute,
        concurrent_chats=concurrent_chats,
        tokens_per_minute=tokens_per_minute,
    )
    scopes = [Scope.Value(f"SCOPE_{name.upper()}") for name in scope]

    async def work(credentials: Credentials) -> str:
        return (await credentials.make(user, scopes, tenant=tenant, days=days, limits=limits))[0]

    print(_with_credentials(resolve(config, set_, data_dir), work))


@keys.command("list")
def list_(config: ConfigFile = None, set_: Overrides = None, data_dir: DataDir = None) -> None:
    """List all keys; their secrets are known to nobody here."""

    async def work(credentials: Credentials) -> list[KeyRecord]:
        return await credentials.all()

    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("id", "user", "tenant", "scopes", "limits", "made", "state"):
        table.add_column(heading)
    for record in _with_credentials(resolve(config, set_, data_dir), work):
        table.add_row(
            record.key_id,
            escape(record.user),
            escape(record.tenant),
            " ".join(Scope.Name(scope).removeprefix("SCOPE_").lower() for scope in record.scopes),
            ", ".join(f"{field.name} {value}" for field, value in record.limits.ListFields()),
            _day(record.created_at),
            _state(record),
        )
    Console().print(table)


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As `thumbwheel keys list` shows it.")],
    config: ConfigFile = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
) -> None:
    """End a key; every server follows within two seconds."""

    async def work(credentials: Credentials) -> KeyRecord:
        return await credentials.revoke(key_id)

    record = _with_credentials(resolve(config, set_, data_dir), work)
    print(f"{record.key_id} of {record.user} is revoked")


def _with_credentials(settings: Config, work: Callable[[Credentials], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with _open(settings) as store:
            return await work(Credentials(store))

    return asyncio.run(run())


@asynccontextmanager
async def _open(settings: Config) -> AsyncIterator[Store]:
    url = redis_server.url_in_use(settings)
    store = await Store.open(url, settings.redis.namespace, settings.redis.password_file)
    try:
        yield store
    finally:
        await store.close()


def _state(record: KeyRecord) -> str:
    if record.HasField("revoked_at"):
        return f"[red]revoked {_day(record.revoked_at)}[/]"
    if not is_valid(record):
        return f"[yellow]expired {_day(record.expires_at)}[/]"
    return f"until {_day(record.expires_at)}" if record.HasField("expires_at") else "valid"


def _day(stamp: Timestamp) -> str:
    return stamp.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d")
