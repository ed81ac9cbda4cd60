"""`thumbwheel versions`, `promote` and `rollback`: who is live, and who shall be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cli import connection
from cli.connection import CALL_SECONDS, AdminServer, Door, Services, User
from cli.options import DataDir
from thumbwheel_client.v1 import models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

COLUMNS = (
    ("KL", "kl_nats_per_sequence", "{:.2f}"),
    ("AUC", "reward_model_auc", "{:.2f}"),
    ("win rate", "win_rate", "{:.0%}"),
    ("competence", "competence", "{:.0%}"),
)
"""Figures of a version: heading, key of its metrics, format."""

STATE_STYLES = {
    pb.VERSION_STATE_CANARY: "bold yellow",
    pb.VERSION_STATE_LIVE: "bold green",
    pb.VERSION_STATE_REJECTED: "red",
    pb.VERSION_STATE_ROLLED_BACK: "yellow",
}


def versions(
    server: AdminServer = "",
    data_dir: DataDir = None,
    user: User = "",
    training: Annotated[
        bool, typer.Option("--training", help="Also those that a cycle under way samples from.")
    ] = False,
) -> None:
    """List the versions, newest first."""

    async def work(door: Door) -> None:
        async with connection.connect(door) as services:
            pages = [page async for page in list_pages(services, user, training)]
        records = [record for page in pages for record in page.versions]
        console = Console()
        console.print(table(records, pages[0].live))
        # Beneath the table and not in it: on a narrow terminal a column of sentences is a column of syllables.
        for record in records:
            if "trial_raters" in record.metrics:
                console.print(f"[dim]{escape(record.name)}:[/] {trial(record)}", highlight=False)
            if record.reasons:
                console.print(f"[dim]{escape(record.name)}:[/] {escape('; '.join(record.reasons))}", highlight=False)

    connection.run(work, server, data_dir)


def promote(
    name: Annotated[str, typer.Argument(help="A version, as `thumbwheel versions` lists it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    server: AdminServer = "",
    data_dir: DataDir = None,
    user: User = "",
) -> None:
    """Make a version live."""

    async def work(door: Door) -> None:
        request = models_pb2.PromoteRequest(name=name, reason=reason)
        async with connection.connect(door) as services:
            moved = await services.models.Promote(request, timeout=CALL_SECONDS, metadata=services.identity(user))
        Console().print(f"{moved.live.name} is live, {moved.previous} was", highlight=False)

    connection.run(work, server, data_dir)


def rollback(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record.")] = "",
    server: AdminServer = "",
    data_dir: DataDir = None,
    user: User = "",
) -> None:
    """Take the live version back; the one before it answers at once."""

    async def work(door: Door) -> None:
        request = models_pb2.RollbackRequest(reason=reason)
        async with connection.connect(door) as services:
            moved = await services.models.Rollback(request, timeout=CALL_SECONDS, metadata=services.identity(user))
        Console().print(f"{moved.live.name} is live again, {moved.previous} was taken back", highlight=False)

    connection.run(work, server, data_dir)


async def list_pages(
    services: Services, user: str, training: bool = False
) -> AsyncIterator[models_pb2.ListVersionsResponse]:
    """All pages; at least one."""
    request = models_pb2.ListVersionsRequest(page_size=200, include_training=training)
    while True:
        page = await services.models.ListVersions(request, timeout=CALL_SECONDS, metadata=services.identity(user))
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def table(records: list[pb.VersionRecord], live: str) -> Table:
    """The versions as rows, the live one marked."""
    view = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("", "version", "state", "parent"):
        view.add_column(heading, no_wrap=True)
    for heading, _, _ in COLUMNS:
        view.add_column(heading, justify="right")
    view.add_column("created", no_wrap=True)
    for record in records:
        view.add_row(
            "●" if record.name == live else "",
            escape(record.name),
            f"[{STATE_STYLES.get(record.state, 'default')}]{state_name(record.state)}[/]",
            escape(record.parent),
            *(form.format(record.metrics[key]) if key in record.metrics else "" for _, key, form in COLUMNS),
            _local_time(record) if record.HasField("created_at") else "",
        )
    return view


def trial(record: pb.VersionRecord) -> str:
    """What people's votes have said of a version since it came."""
    raters, doubt = record.metrics["trial_raters"], record.metrics["trial_doubt"]
    return f"{raters:.0f} raters since it came, {doubt:.0%} of the evidence that takes it back"


def state_name(state: pb.VersionState.ValueType) -> str:
    """`VERSION_STATE_ROLLED_BACK` as "rolled back"."""
    return pb.VersionState.Name(state).removeprefix("VERSION_STATE_").lower().replace("_", " ")


def _local_time(record: pb.VersionRecord) -> str:
    return record.created_at.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M")
