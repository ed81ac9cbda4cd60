"""`thumbwheel import`: votes from a file, with what they are about, for the learner to learn from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from cli import connection, openwebui, preferences, row_files, vote_rows
from cli.connection import CALL_SECONDS, AdminServer, Door, Services, User
from cli.options import DataDir
from cli.patience import Patience
from cli.progress import bar
from cli.row_files import Entry
from thumbwheel.errors import InvalidInput, SetupError
from thumbwheel_client.v1.import_pb2 import (
    IMPORT_STATUS_KEPT,
    IMPORT_STATUS_REFUSED,
    ImportedVote,
    ImportVotesRequest,
)

VOTES_A_CALL = 100
BYTES_A_CALL = 1 << 19
"""Half of what a server receives in one message."""
SHOWN = 20
"""Refusals that are told one by one."""


class Format(StrEnum):
    """What the file is written in."""

    jsonl = "jsonl"
    parquet = "parquet"
    kto = "kto"
    dpo = "dpo"
    openwebui = "openwebui"


READ: dict[Format, Callable[[IO[bytes]], Iterator[Entry]]] = {
    Format.jsonl: row_files.read_lines,
    Format.parquet: row_files.read_parquet,
    Format.kto: row_files.read_lines,
    Format.dpo: row_files.read_lines,
    Format.openwebui: row_files.read_list,
}
VOTE_OF: dict[Format, Callable[[Any], ImportedVote]] = {
    Format.jsonl: vote_rows.vote_of,
    Format.parquet: vote_rows.vote_of,
    Format.kto: preferences.vote_of_kto,
    Format.dpo: preferences.vote_of_dpo,
    Format.openwebui: openwebui.vote_of,
}
HELP = (
    "jsonl, parquet: as export writes them. kto, dpo: JSON lines as TRL takes them. openwebui: its exported feedback."
)


def import_votes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What to read; -: standard input.")],
    format: Annotated[Format, typer.Option("--format", help=HELP)] = Format.jsonl,
    rater: Annotated[str, typer.Option("--rater", metavar="NAME", help="Who cast votes that name nobody.")] = "",
    rejects: Annotated[Path | None, typer.Option("--rejects", help="File for rows that were refused, and why.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of them.")] = False,
    server: AdminServer = "",
    data_dir: DataDir = None,
    user: User = "",
) -> None:
    """Bring votes from a file. What is there already stays as it is, so the same file may come again."""
    counts = Counts()

    async def work(door: Door) -> None:
        with ExitStack() as stack:
            rows = READ[format](stack.enter_context(_source(file)))
            refused = row_files.JsonLines(stack.enter_context(row_files.whole(rejects))) if rejects else None
            show = stack.enter_context(bar())
            async with connection.connect(door) as services:
                sender = Sender(services, user, dry_run, counts, refused)
                for entry in rows:
                    await sender.take(entry, VOTE_OF[format], rater)
                    show(entry.share, f"{entry.number:,} rows")
                await sender.send()

    connection.run(work, server, data_dir)
    for line in counts.reasons:
        print(line, file=sys.stderr)
    if counts.refused > len(counts.reasons):
        print(f"... and {counts.refused - len(counts.reasons)} more; --rejects keeps them all", file=sys.stderr)
    kept = "would be kept" if dry_run else "kept"
    print(f"{counts.kept} votes {kept}, {counts.known} known already, {counts.refused} refused")
    if counts.refused:
        raise typer.Exit(1)


@dataclass(slots=True)
class Counts:
    """What became of the rows, and the first reasons why some were refused."""

    kept: int = 0
    known: int = 0
    refused: int = 0
    reasons: list[str] = field(default_factory=list)


class Sender:
    """Sends votes in calls that a server receives whole."""

    def __init__(
        self, services: Services, user: str, dry_run: bool, counts: Counts, rejects: row_files.Writer | None
    ) -> None:
        self._services = services
        self._user = user
        self._dry_run = dry_run
        self._counts = counts
        self._rejects = rejects
        self._patience = Patience()
        self._waiting: list[tuple[Entry, ImportedVote]] = []
        self._size = 0

    async def take(self, entry: Entry, vote_of: Callable[[Any], ImportedVote], rater: str) -> None:
        """Adds a row, and sends those before it where it would not fit."""
        if entry.wrong:
            self._refuse(entry, entry.wrong)
            return
        try:
            vote = vote_of(entry.row)
        except InvalidInput as error:
            self._refuse(entry, str(error))
            return
        except ValueError:  # of the protobuf library, for half a surrogate pair
            self._refuse(entry, "holds characters that are none")
            return
        if rater and vote.WhichOneof("who") is None:
            vote.user = rater
        size = vote.ByteSize()
        if size > BYTES_A_CALL:
            self._refuse(entry, f"{size} bytes; at most {BYTES_A_CALL}")
            return
        if len(self._waiting) == VOTES_A_CALL or self._size + size > BYTES_A_CALL:
            await self.send()
        self._waiting.append((entry, vote))
        self._size += size

    async def send(self) -> None:
        """Sends what waits."""
        if not self._waiting:
            return
        request = ImportVotesRequest(votes=[vote for _, vote in self._waiting], dry_run=self._dry_run)
        answer = await self._patience.call(
            lambda: self._services.imports.ImportVotes(
                request, timeout=CALL_SECONDS, metadata=self._services.identity(self._user)
            )
        )
        for (entry, _), result in zip(self._waiting, answer.results, strict=True):
            if result.status == IMPORT_STATUS_REFUSED:
                self._refuse(entry, result.reason)
            elif result.status == IMPORT_STATUS_KEPT:
                self._counts.kept += 1
            else:
                self._counts.known += 1
        self._waiting, self._size = [], 0

    def _refuse(self, entry: Entry, reason: str) -> None:
        self._counts.refused += 1
        if len(self._counts.reasons) < SHOWN:
            self._counts.reasons.append(f"row {entry.number}: {reason}")
        if self._rejects is not None:
            self._rejects.write({"number": entry.number, "reason": reason, "row": entry.row})


@contextmanager
def _source(path: Path) -> Iterator[IO[bytes]]:
    if path == Path("-"):
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file
