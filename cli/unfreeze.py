"""`thumbwheel unfreeze`: a person looks at what froze the learner, and lets it go on."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cli import redis_server
from cli.options import ConfigFile, DataDir, Overrides, resolve
from thumbwheel.config import Config
from thumbwheel.errors import NotReady
from thumbwheel.feedback_log import CurrentVotes, FeedbackLog
from thumbwheel.freeze import Brake, Frozen
from thumbwheel.records import split_response_id
from thumbwheel.store import Store
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel_client.v1 import record_pb2 as pb

LONGEST = 300
"""Characters of a text that are shown."""


def unfreeze(
    config: ConfigFile = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Shows which tripwire has frozen the learner, with answers that show why, and lets it go on."""
    settings = resolve(config, set_, data_dir)
    asyncio.run(_unfreeze(settings, redis_server.url_in_use(settings), yes))


async def _unfreeze(settings: Config, url: str, yes: bool) -> None:
    store = await Store.open(url, settings.redis.namespace, settings.redis.password_file)
    try:
        brake = Brake(store)
        frozen = await brake.frozen()
        if frozen is None:
            raise NotReady("the learner is not frozen")
        await _show(frozen, TurnLog(store, settings.turn_log), FeedbackLog(store, settings.feedback))
        if not yes:
            typer.confirm("Let the learner go on, with these votes?", abort=True)
        await brake.release(frozen)
        print("unfrozen: the learner goes on")
    finally:
        await store.close()


async def _show(frozen: Frozen, turns: TurnLog, feedback: FeedbackLog) -> None:
    console = Console(highlight=False)
    console.print(Text(f"frozen since {frozen.at or 'an unknown time'} at {frozen.cycle_id or 'an unknown cycle'}"))
    for tripped in frozen.tripped:
        console.print(Text.assemble("\n", (tripped.wire, "bold red"), f": {tripped.words}"), soft_wrap=True)
        names = [split_response_id(name)[0] for name in tripped.samples]
        votes = await feedback.current(names)
        for name, turn in zip(tripped.samples, await turns.get_many(names), strict=True):
            console.print(_sample(name, turn, votes[split_response_id(name)[0]]), soft_wrap=True)
    console.print()


def _sample(name: str, turn: Turn | None, votes: CurrentVotes) -> Text:
    """A question, an answer to it, and what was said of that."""
    response = turn.responses.get(split_response_id(name)[1]) if turn else None
    if turn is None or response is None:
        return Text(f"\n  {name}: it is gone", "dim")
    asked = [message.content for message in turn.record.messages if message.role == pb.ROLE_USER]
    lines = [("  › ", asked[-1] if asked else ""), ("    ", response.text)]
    for _, vote in votes:
        if vote.response_id in ("", name):
            lines.append(("  — ", _said(vote)))
    return Text.assemble((f"\n  {name}\n", "dim"), "\n".join(sign + _plain(text) for sign, text in lines))


def _said(vote: pb.VoteEvent) -> str:
    """In words: the kind, its value, the rater, and the comment."""
    match vote.WhichOneof("value"):
        case "thumb":
            value = "up" if vote.thumb == pb.THUMB_UP else "down"
        case "stars":
            value = f"{vote.stars} stars"
        case "edit":
            value = f"edit: {vote.edit}"
        case _:
            value = "ranking"
    return f"{vote.rater[:8]} {value}" + (f" ({vote.comment})" if vote.comment else "")


def _plain(text: str) -> str:
    """On one line, without what would steer the terminal: strangers wrote it."""
    line = "".join(sign if sign.isprintable() else " " for sign in text.strip())
    return line if len(line) <= LONGEST else line[:LONGEST] + "…"
