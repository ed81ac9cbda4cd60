"""Votes that have been checked, as the events that are stored."""

from __future__ import annotations

from collections.abc import Sequence

from thumbwheel import config
from thumbwheel.errors import InvalidInput
from thumbwheel.records import MAX_ANSWERS, now, split_response_id
from thumbwheel_client.v1 import feedback_pb2, record_pb2

MAX_KEY_CHARS = 128
MAX_REASONS = 8
MAX_REASON_CHARS = 64
MAX_COMMENT_CHARS = 2000
MAX_ID_CHARS = 64

KINDS = {
    "thumb": record_pb2.VOTE_KIND_THUMB,
    "stars": record_pb2.VOTE_KIND_STARS,
    "ranking": record_pb2.VOTE_KIND_RANKING,
    "edit": record_pb2.VOTE_KIND_EDIT,
}


def vote_of(request: feedback_pb2.RateRequest, rater: str, limits: config.Feedback) -> record_pb2.VoteEvent:
    """
    Raises:
        InvalidInput: names the field and the limit.
    """
    which = request.WhichOneof("vote")
    if which is None:
        raise InvalidInput("vote", "none; set thumb, stars, ranking or edit")
    _check_key(request.idempotency_key)
    _check_words(request.reasons, request.comment)
    event = record_pb2.VoteEvent(
        rater=rater,
        kind=KINDS[which],
        response_id=request.response_id,
        reasons=request.reasons,
        comment=request.comment,
        created_at=now(),
    )
    if which == "ranking":
        if request.response_id:
            raise InvalidInput("response_id", "must be empty for a ranking; its items name the answers")
        event.turn_id = _check_ranking(request.ranking)
        event.ranking.CopyFrom(request.ranking)
        return event
    event.turn_id = _turn_of(request.response_id, "response_id")
    if which == "thumb":
        if request.thumb not in (record_pb2.THUMB_UP, record_pb2.THUMB_DOWN):
            raise InvalidInput("thumb", "must be THUMB_UP or THUMB_DOWN")
        event.thumb = request.thumb
    elif which == "stars":
        if not 1 <= request.stars <= 5:
            raise InvalidInput("stars", f"{request.stars}; must be 1 to 5")
        event.stars = request.stars
    else:
        if not request.edit.strip():
            raise InvalidInput("edit", "empty")
        if len(request.edit) > limits.max_edit_chars:
            raise InvalidInput("edit", f"{len(request.edit)} characters; at most {limits.max_edit_chars}")
        event.edit = request.edit
    return event


def retraction_of(request: feedback_pb2.RetractRequest, rater: str) -> record_pb2.VoteEvent:
    """
    Raises:
        InvalidInput: names the field.
    """
    _check_key(request.idempotency_key)
    if request.kind not in KINDS.values():
        raise InvalidInput("kind", "must name one of the four kinds of vote")
    event = record_pb2.VoteEvent(rater=rater, kind=request.kind, retracted=True, created_at=now())
    if request.kind == record_pb2.VOTE_KIND_RANKING:
        if request.response_id:
            raise InvalidInput("response_id", "must be empty for a ranking; turn_id names it")
        if not 0 < len(request.turn_id) <= MAX_ID_CHARS:
            raise InvalidInput("turn_id", f"must be 1 to {MAX_ID_CHARS} characters for a ranking")
        event.turn_id = request.turn_id
        return event
    event.turn_id = _turn_of(request.response_id, "response_id")
    if request.turn_id not in ("", event.turn_id):
        raise InvalidInput("turn_id", "must be empty, or the turn of response_id")
    event.response_id = request.response_id
    return event


def _check_key(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY_CHARS:
        raise InvalidInput("idempotency_key", f"{len(key)} characters; must be 1 to {MAX_KEY_CHARS}")


def _check_words(reasons: Sequence[str], comment: str) -> None:
    if len(reasons) > MAX_REASONS:
        raise InvalidInput("reasons", f"{len(reasons)} labels; at most {MAX_REASONS}")
    for index, reason in enumerate(reasons):
        if not 0 < len(reason) <= MAX_REASON_CHARS:
            raise InvalidInput(f"reasons[{index}]", f"{len(reason)} characters; must be 1 to {MAX_REASON_CHARS}")
    if len(comment) > MAX_COMMENT_CHARS:
        raise InvalidInput("comment", f"{len(comment)} characters; at most {MAX_COMMENT_CHARS}")


def _check_ranking(ranking: record_pb2.Ranking) -> str:
    """The one turn that all ranked answers belong to."""
    if not 2 <= len(ranking.items) <= MAX_ANSWERS:
        raise InvalidInput("ranking.items", f"{len(ranking.items)} answers; must be 2 to {MAX_ANSWERS}")
    turns = [
        _turn_of(item.response_id, f"ranking.items[{index}].response_id") for index, item in enumerate(ranking.items)
    ]
    for index, item in enumerate(ranking.items):
        if item.rank < 1:
            raise InvalidInput(f"ranking.items[{index}].rank", "0; the best rank is 1")
        if turns[index] != turns[0]:
            raise InvalidInput(f"ranking.items[{index}].response_id", "is not of the same turn as the first")
    if len({item.response_id for item in ranking.items}) < len(ranking.items):
        raise InvalidInput("ranking.items", "an answer is ranked twice")
    return turns[0]


def _turn_of(response_id: str, field: str) -> str:
    """
    Raises:
        InvalidInput: empty or absurdly long.
        NotFound: no answer can have this name.
    """
    if not 0 < len(response_id) <= MAX_ID_CHARS:
        raise InvalidInput(field, f"{len(response_id)} characters; must be 1 to {MAX_ID_CHARS}, as a receipt gave it")
    return split_response_id(response_id)[0]
