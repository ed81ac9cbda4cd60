"""`thumbwheel erase`: a person asks to be forgotten."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cli import connection
from cli.connection import AdminServer, Door
from cli.options import DataDir
from thumbwheel_client.v1 import privacy_pb2

ERASE_SECONDS = 110.0
"""Deadline; thousands of turns a second are removed."""


def erase(
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Whom to erase, as their key or token says.")],
    issuer: Annotated[str, typer.Option("--issuer", help="Who issued their tokens; not for the user of a key.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    server: AdminServer = "",
    data_dir: DataDir = None,
) -> None:
    """Remove a person's turns and votes, and list the versions that learned from them."""
    if not yes:
        typer.confirm(f"Remove every turn and vote of {user!r}? They cannot be brought back.", abort=True)

    async def work(door: Door) -> None:
        request = privacy_pb2.EraseRequest(user=user, issuer=issuer)
        async with connection.connect(door) as services:
            erased = await services.privacy.Erase(
                request, timeout=ERASE_SECONDS, metadata=services.identity("operator")
            )
        console = Console(highlight=False)
        console.print(f"{erased.turns} turns and {erased.votes} votes of {escape(repr(user))} are removed")
        if erased.versions:
            console.print(f"versions that have learned from them: {escape(', '.join(erased.versions))}")
            console.print("weights do not forget: promote a version that is not in this list to be rid of it")

    connection.run(work, server, data_dir)
