"""Votes as rows: what `thumbwheel export` writes and `thumbwheel import` takes back; docs/data.md tells each column.

Every row has every column, and a column has one type, so that JSON lines and Parquet hold the same table.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cli import row_values
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb
from thumbwheel_client.v1.import_pb2 import ImportedAnswer, ImportedRanks, ImportedVote

Row = dict[str, Any]
THUMBS = {"up": pb.THUMB_UP, "down": pb.THUMB_DOWN}


def row_of(vote: feedback_pb2.Vote) -> Row:
    """A vote with its conversation and answers.

    ``version`` sampled the rated answer, or all ranked ones: None if they differ, are no longer kept, or were imported.
    """
    event = vote.event
    answers = [
        {
            "response_id": answer.response_id,
            "text": answer.text,
            "version": "+".join(span.version for span in answer.spans) or None,
        }
        for answer in vote.responses
    ]
    rated = {answer["version"] for answer in answers if event.response_id in ("", answer["response_id"])}
    which = event.WhichOneof("value")
    return {
        "event_id": vote.event_id,
        "kind": pb.VoteKind.Name(event.kind).removeprefix("VOTE_KIND_").lower(),
        "thumb": ("up" if event.thumb == pb.THUMB_UP else "down") if which == "thumb" else None,
        "stars": event.stars if which == "stars" else None,
        "ranking": [{"response_id": item.response_id, "rank": item.rank} for item in event.ranking.items],
        "edit": event.edit if which == "edit" else None,
        "reasons": list(event.reasons),
        "comment": event.comment,
        "rater": event.rater,
        "version": rated.pop() if len(rated) == 1 else None,
        "turn_id": event.turn_id,
        "response_id": event.response_id or None,
        "prompt": messages_of(vote),
        "answers": answers,
        "answered_at": _time(vote.answered_at) if vote.HasField("answered_at") else None,
        "rated_at": _time(event.created_at),
    }


def messages_of(vote: feedback_pb2.Vote) -> list[dict[str, str]]:
    """The conversation, as chat templates take it."""
    return [
        {"role": pb.Role.Name(message.role).removeprefix("ROLE_").lower(), "content": message.content}
        for message in vote.messages
    ]


def _time(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(UTC)


def vote_of(row: Any) -> ImportedVote:
    """A row of ours, or one that somebody else wrote in its manner, to be imported.

    Raises:
        InvalidInput: it is none; names the column.
    """
    row = row_values.table(row, "row")
    turn_id = row_values.text(row.get("turn_id"), "turn_id")
    answers = {
        index: row_values.text(answer.get("text"), f"answers[{place}].text")
        for place, answer in enumerate(_tables(row, "answers"))
        for index in [_index(answer.get("response_id"), turn_id, place, f"answers[{place}].response_id")]
    }
    vote = ImportedVote(
        messages=row_values.messages(row.get("prompt"), "prompt"),
        turn_id=turn_id,
        reasons=[row_values.text(reason, "reasons") for reason in row_values.items(row.get("reasons"), "reasons")],
        comment=row_values.text(row.get("comment"), "comment"),
        answered_at=row_values.time(row.get("answered_at"), "answered_at"),
        rated_at=row_values.time(row.get("rated_at"), "rated_at"),
    )
    name_rater(vote, row.get("rater"))
    kind = row.get("kind")
    if kind == "ranking":
        ranks = {
            _index(item.get("response_id"), turn_id, None, "ranking"): row_values.number(item.get("rank"), "ranking")
            for item in _tables(row, "ranking")
        }
        if not ranks.keys() <= answers.keys():
            raise InvalidInput("answers", "does not hold all that were ranked")
        vote.answers.extend(ImportedAnswer(index=index, text=answers[index]) for index in ranks)
        vote.ranks.CopyFrom(ImportedRanks(ranks=ranks.values()))
        return vote
    only = next(iter(answers)) if len(answers) == 1 else None
    rated = _index(row.get("response_id"), turn_id, only, "response_id")
    if rated not in answers:
        raise InvalidInput("answers", "does not hold the one that was rated")
    vote.answers.append(ImportedAnswer(index=rated, text=answers[rated]))
    match kind:
        case "thumb":
            thumb = THUMBS.get(row_values.text(row.get("thumb"), "thumb"))
            if thumb is None:
                raise InvalidInput("thumb", "must be up or down")
            vote.thumb = thumb
        case "stars":
            vote.stars = row_values.number(row.get("stars"), "stars")
        case "edit":
            vote.edit = row_values.text(row.get("edit"), "edit")
        case _:
            raise InvalidInput("kind", "must be thumb, stars, ranking or edit")
    return vote


def name_rater(vote: ImportedVote, rater: Any) -> None:
    """Who cast it: as an export names them, by any other name, or nobody in particular."""
    name = row_values.text(rater, "rater")
    if len(name) == 32 and set(name) <= set("0123456789abcdef"):
        vote.rater = name
    elif name:
        vote.user = name


def _tables(row: Any, field: str) -> list[Any]:
    return [row_values.table(entry, field) for entry in row_values.items(row.get(field), field)]


def _index(response_id: Any, turn_id: str, otherwise: int | None, field: str) -> int:
    """Which of the turn's answers this is; `otherwise` where that is not said."""
    if response_id is None and otherwise is not None:
        return otherwise
    turn, _, index = row_values.text(response_id, field).rpartition("-")
    if turn != turn_id or len(index) != 1 or not index.isascii() or not index.isdigit():
        raise InvalidInput(field, "must be turn_id, a dash, and the number of the answer")
    return int(index)
