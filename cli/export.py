"""`thumbwheel export`: every current vote with what was rated, page by page, in constant memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from cli import connection
from cli.connection import CALL_SECONDS, Door, Server, Services, User
from cli.options import DataDir
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

TURNS_A_PAGE = 100


class Format(StrEnum):
    """What the votes are written as."""

    jsonl = "jsonl"


def export(
    format: Annotated[Format, typer.Option("--format", help="jsonl: one JSON object a line.")] = Format.jsonl,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File; left out: standard output.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own votes.")] = False,
    server: Server = "",
    data_dir: DataDir = None,
    user: User = "",
) -> None:
    """Write all current votes with the conversations and answers they rate."""

    async def work(door: Door) -> None:
        async with connection.connect(door) as services:
            with _sink(output) as sink, _progress(sink) as progress:
                task = progress.add_task("votes", total=None)
                async for vote in all_votes(services, user, everybody=not mine):
                    sink.write(json.dumps(as_json(vote), ensure_ascii=False) + "\n")
                    progress.advance(task)

    try:
        connection.run(work, server, data_dir)
    except BrokenPipeError:
        # Whoever read our lines has seen enough; flushing at exit must not fail over them once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


async def all_votes(services: Services, user: str, everybody: bool) -> AsyncIterator[feedback_pb2.Vote]:
    """Current votes with their turns, newest turn first; holds one page at a time."""
    request = feedback_pb2.ListVotesRequest(all_raters=everybody, include_turns=True, page_size=TURNS_A_PAGE)
    while True:
        page = await services.feedback.ListVotes(request, timeout=CALL_SECONDS, metadata=services.identity(user))
        for vote in page.votes:
            yield vote
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def as_json(vote: feedback_pb2.Vote) -> dict[str, Any]:
    """A vote as plain data.

    ``version`` sampled the rated answer, or all ranked ones (null if they differ or are no longer kept).
    """
    event = vote.event
    answers = [
        {"response_id": answer.response_id, "text": answer.text, "version": "+".join(s.version for s in answer.spans)}
        for answer in vote.responses
    ]
    rated = {str(a["version"]) for a in answers if event.response_id in ("", a["response_id"])}
    return {
        "event_id": vote.event_id,
        "kind": pb.VoteKind.Name(event.kind).removeprefix("VOTE_KIND_").lower(),
        "value": _value(event),
        "reasons": list(event.reasons),
        "comment": event.comment,
        "rater": event.rater,
        "version": rated.pop() if len(rated) == 1 else None,
        "turn_id": event.turn_id,
        "response_id": event.response_id or None,
        "prompt": [
            {"role": pb.Role.Name(message.role).removeprefix("ROLE_").lower(), "content": message.content}
            for message in vote.messages
        ],
        "answers": answers,
        "answered_at": _time(vote.answered_at) if vote.HasField("answered_at") else None,
        "rated_at": _time(event.created_at),
    }


def _value(event: pb.VoteEvent) -> Any:
    match event.WhichOneof("value"):
        case "thumb":
            return "up" if event.thumb == pb.THUMB_UP else "down"
        case "stars":
            return event.stars
        case "ranking":
            return [{"response_id": item.response_id, "rank": item.rank} for item in event.ranking.items]
        case "edit":
            return event.edit
    return None


def _time(stamp: Timestamp) -> str:
    return stamp.ToDatetime(UTC).isoformat()


@contextmanager
def _sink(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when it is whole."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            yield file
        partial.replace(output)
    except OSError as error:
        raise SetupError(f"cannot write {output}: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _progress(sink: TextIO) -> Progress:
    """On a terminal, unless the votes themselves go there."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} votes"), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal or sink.isatty(), transient=True)
