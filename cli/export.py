"""`thumbwheel export`: every current vote with what was rated, page by page, in constant memory."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Annotated

import typer

from cli import connection, row_files
from cli.connection import CALL_SECONDS, Door, Server, Services, User
from cli.options import DataDir
from cli.preferences import Dpo, Kto
from cli.progress import bar
from cli.vote_rows import Row, row_of
from thumbwheel_client.v1.feedback_pb2 import ListVotesRequest, Vote

TURNS_A_PAGE = 100

Rows = Callable[[Sequence[Vote]], Iterator[Row]]
"""The rows that all votes on one turn make."""


class Format(StrEnum):
    """What the votes are written as."""

    jsonl = "jsonl"
    parquet = "parquet"
    kto = "kto"
    dpo = "dpo"


HELP = "jsonl, parquet: every vote with what it is about. kto, dpo: JSON lines as TRL's trainers take them."


def export(
    format: Annotated[Format, typer.Option("--format", help=HELP)] = Format.jsonl,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; - or none: standard output.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own votes.")] = False,
    server: Server = "",
    data_dir: DataDir = None,
    user: User = "",
) -> None:
    """Write all current votes with the conversations and answers they rate."""
    file = None if output == Path("-") else output
    rows, left_out = _made_of(format)

    async def work(door: Door) -> None:
        async with connection.connect(door) as services:
            # No bar over the rows themselves.
            with _sink(file) as sink, _writer(format, sink) as writer, bar(hidden=sink.isatty()) as show:
                turns = votes = written = 0
                async for turn in all_turns(services, user, everybody=not mine):
                    turns, votes = turns + 1, votes + len(turn.votes)
                    for row in rows(turn.votes):
                        writer.write(row)
                        written += 1
                    show(turns / turn.of if turn.of else 0.0, f"{written:,} rows")
        if left_out and votes:
            print(f"{written} rows from {votes} votes; {left_out}", file=sys.stderr)

    try:
        connection.run(work, server, data_dir)
    except BrokenPipeError:
        # Whoever read our lines has seen enough; flushing at exit must not fail over them once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True, slots=True)
class RatedTurn:
    """All votes on one turn, and of how many turns it is one."""

    votes: list[Vote]
    of: int


async def all_turns(services: Services, user: str, everybody: bool) -> AsyncIterator[RatedTurn]:
    """Current votes with their turns, newest turn first; holds one page at a time."""
    request = ListVotesRequest(all_raters=everybody, include_turns=True, page_size=TURNS_A_PAGE)
    total = 0
    while True:
        page = await services.feedback.ListVotes(request, timeout=CALL_SECONDS, metadata=services.identity(user))
        total = total or page.total_turns
        turns: dict[str, list[Vote]] = {}
        for vote in page.votes:  # a page holds all votes of its turns
            turns.setdefault(vote.event.turn_id, []).append(vote)
        for votes in turns.values():
            yield RatedTurn(votes, total)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def _made_of(format: Format) -> tuple[Rows, str]:
    """What makes rows of a turn's votes, and what it leaves out."""
    match format:
        case Format.kto:
            return Kto().rows, "KTO knows thumbs, and stars but three, and nothing else"
        case Format.dpo:
            return Dpo().rows, "DPO knows rankings, edits, and opposite opinions on answers to one prompt"
    return lambda votes: map(row_of, votes), ""


@contextmanager
def _writer(format: Format, sink: IO[bytes]) -> Iterator[row_files.Writer]:
    if format is Format.parquet:
        with row_files.parquet(sink) as writer:
            yield writer
    else:
        yield row_files.JsonLines(sink)


@contextmanager
def _sink(output: Path | None) -> Iterator[IO[bytes]]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.flush()
        return
    with row_files.whole(output) as file:
        yield file
