"""Feedback as Open WebUI exports it (Admin Panel, Evaluations, Feedback: Export), with the chat as it was then.

    {"type": "rating", "user_id": ..., "updated_at": seconds, "data": {"rating": 1 or -1, "reason", "comment"},
     "meta": {"message_id"}, "snapshot": {"chat": {"chat": {"history": {"messages": {id: message}}}}}}

A message names the one before it (parentId); the rated one and those before it are the conversation. Whatever else is
there (tags, the scale of ten in `details`, sibling models) is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cli import row_values
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1.import_pb2 import ImportedAnswer, ImportedVote
from thumbwheel_client.v1.record_pb2 import THUMB_DOWN, THUMB_UP

THUMBS = {"1": THUMB_UP, "-1": THUMB_DOWN}


def vote_of(item: Any) -> ImportedVote:
    """One rating.

    Raises:
        InvalidInput: it is no rating of an answer that is there; says why.
    """
    item = row_values.table(item, "feedback")
    if item.get("type") != "rating":
        raise InvalidInput("type", "is not rating")
    data = row_values.table(item.get("data"), "data")
    thumb = THUMBS.get(str(data.get("rating")))
    if thumb is None:
        raise InvalidInput("data.rating", "is neither 1 nor -1")
    path = _path(item)
    reason = row_values.text(data.get("reason"), "data.reason")
    said = [{"role": message.get("role"), "content": message.get("content")} for message in path]
    vote = ImportedVote(
        messages=row_values.messages(said[:-1], "snapshot"),
        answers=[ImportedAnswer(text=row_values.answer(said[-1:], "snapshot"))],
        thumb=thumb,
        reasons=[reason] if reason else [],
        comment=row_values.text(data.get("comment"), "data.comment"),
        answered_at=row_values.time(path[-1].get("timestamp"), "snapshot"),
        rated_at=row_values.time(item.get("updated_at", item.get("created_at")), "updated_at"),
    )
    if user := row_values.text(item.get("user_id"), "user_id"):
        vote.user = user
    return vote


def _path(item: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """From the first message to the rated one."""
    at: Any = item
    for part in ("snapshot", "chat", "chat", "history", "messages"):
        at = row_values.table(at, "snapshot").get(part)
    known = row_values.table(at, "snapshot")
    name = row_values.text(row_values.table(item.get("meta"), "meta").get("message_id"), "meta.message_id")
    path: list[Mapping[str, Any]] = []
    while name:
        if name not in known or len(path) == len(known):
            raise InvalidInput("snapshot", "does not hold the rated message and those before it")
        path.append(row_values.table(known[name], "snapshot"))
        name = row_values.text(path[-1].get("parentId"), "snapshot")
    if not path:
        raise InvalidInput("meta.message_id", "is missing")
    return path[::-1]
