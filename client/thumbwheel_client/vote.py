"""Votes on answers."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Literal, TypedDict, Unpack

from thumbwheel_client.answer import Answer, Receipt
from thumbwheel_client.errors import InvalidInput, naming
from thumbwheel_client.v1 import feedback_pb2, record_pb2

Thumb = Literal["up", "down"]
Kind = Literal["thumb", "stars", "ranking", "edit"]
"""A rater has at most one current vote per answer (or turn, for rankings) and kind."""

Rated = Answer | Receipt | str
"""An answer, its receipt, or its response_id."""

_THUMBS: dict[str, record_pb2.Thumb.ValueType] = {"up": record_pb2.THUMB_UP, "down": record_pb2.THUMB_DOWN}
_KINDS: dict[str, record_pb2.VoteKind.ValueType] = {
    "thumb": record_pb2.VOTE_KIND_THUMB,
    "stars": record_pb2.VOTE_KIND_STARS,
    "ranking": record_pb2.VOTE_KIND_RANKING,
    "edit": record_pb2.VOTE_KIND_EDIT,
}


class Note(TypedDict, total=False):
    """What may go with a vote."""

    reasons: Sequence[str]
    """Why, as up to 8 short labels of up to 64 characters."""
    comment: str
    """Why, in the rater's words; up to 2000 characters."""
    idempotency_key: str
    """Names the vote, in up to 128 characters: however often it is sent, it counts once. Left out, each call makes its
    own; give one to be able to cast the same vote again after an error."""


def rating(rated: Rated, thumb: Thumb | None, stars: int | None, **note: Unpack[Note]) -> feedback_pb2.RateRequest:
    """A thumb or stars, as they are sent.

    Raises:
        InvalidInput: both or neither, or a value that no request can hold; limits are the server's to check.
    """
    request = feedback_pb2.RateRequest()
    with naming("vote"):
        request.response_id = _response_id(rated)
        match thumb, stars:
            case (("up" | "down"), None):
                request.thumb = _THUMBS[thumb]
            case None, int():
                request.stars = stars
            case _:
                raise InvalidInput("vote", f"{thumb!r}, {stars!r}; give up or down, or 1 to 5 stars")
    return _with_note(request, **note)


def ranking(best_first: Sequence[Rated | Sequence[Rated]], **note: Unpack[Note]) -> feedback_pb2.RateRequest:
    """An order, as it is sent. Answers that share a place stand in a sequence of their own.

    Raises:
        InvalidInput: a value that no request can hold.
    """
    places = [[place] if isinstance(place, Rated) else place for place in best_first]
    with naming("ranking"):
        items = [
            record_pb2.RankedResponse(response_id=_response_id(rated), rank=rank)
            for rank, place in enumerate(places, start=1)
            for rated in place
        ]
    return _with_note(feedback_pb2.RateRequest(ranking=record_pb2.Ranking(items=items)), **note)


def correction(rated: Rated, text: str, **note: Unpack[Note]) -> feedback_pb2.RateRequest:
    """What the answer should have been, as it is sent.

    Raises:
        InvalidInput: a value that no request can hold.
    """
    with naming("edit"):
        request = feedback_pb2.RateRequest(response_id=_response_id(rated), edit=text)
    return _with_note(request, **note)


def retraction(rated: Rated, kind: Kind, idempotency_key: str) -> feedback_pb2.RetractRequest:
    """A vote taken back, as it is sent. A ranking is named by any answer of its turn.

    Raises:
        InvalidInput: no such kind, or a value that no request can hold.
    """
    if kind not in _KINDS:
        raise InvalidInput("kind", f"{kind!r}; must be one of {', '.join(_KINDS)}")
    with naming("vote"):
        return feedback_pb2.RetractRequest(
            response_id="" if kind == "ranking" else _response_id(rated),
            turn_id=_turn_id(rated) if kind == "ranking" else "",
            kind=_KINDS[kind],
            idempotency_key=idempotency_key or _new_key(),
        )


def _response_id(rated: Rated) -> str:
    match rated:
        case Answer():
            return rated.receipt.response_id
        case Receipt():
            return rated.response_id
        case _:
            return rated


def _turn_id(rated: Rated) -> str:
    match rated:
        case Answer():
            return rated.receipt.turn_id
        case Receipt():
            return rated.turn_id
        case _:
            return rated.rpartition("-")[0]


def _with_note(
    request: feedback_pb2.RateRequest, *, reasons: Sequence[str] = (), comment: str = "", idempotency_key: str = ""
) -> feedback_pb2.RateRequest:
    if isinstance(reasons, str):  # which is a sequence of letters
        raise InvalidInput("reasons", "must be a list of labels")
    with naming("vote"):
        request.reasons.extend(reasons)
        request.comment = comment
        request.idempotency_key = idempotency_key or _new_key()
    return request


def _new_key() -> str:
    return uuid.uuid4().hex
