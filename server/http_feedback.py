"""``/v1/feedback``: votes as FeedbackService takes them, and by TensorZero's names.

TensorZero sends ``{"inference_id", "metric_name", "value"}``. Its metrics mean whatever their owner has configured;
here only names whose meaning is plain are votes, and none is guessed.
"""

from __future__ import annotations

import secrets
from typing import Any, Final, Literal

from pydantic import field_validator
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from server import http_json
from server.access import caller
from server.http_boundary import Call
from server.http_json import Sent, UInt32
from server.vote_input import KINDS
from server.votes import Votes
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1 import record_pb2
from thumbwheel_client.v1.feedback_pb2 import RateRequest, RetractRequest

THUMBS: Final = {"up": record_pb2.THUMB_UP, "down": record_pb2.THUMB_DOWN}
METRICS: Final = {
    "thumb": "thumb",
    "thumbs_up": "thumb",
    "stars": "stars",
    "edit": "edit",
    "demonstration": "edit",  # TensorZero's own word for what the answer should have been
}
"""The votes that TensorZero's metrics are."""


class Rating(Sent):
    """The body of ``POST``. `ranking` names answers of one turn, the best first; those in one list are equally good."""

    response_id: str = ""
    thumb: Literal["up", "down"] | None = None
    stars: UInt32 | None = None
    ranking: list[list[str]] | None = None
    edit: str | None = None
    reasons: list[str] | None = None
    comment: str | None = None
    idempotency_key: str | None = None

    @field_validator("ranking", mode="before")
    @classmethod
    def _tied(cls, ranking: Any) -> Any:
        if not isinstance(ranking, list):
            return ranking
        return [[place] if isinstance(place, str) else place for place in ranking]


class Metric(Sent):
    """The body of ``POST`` by TensorZero's names."""

    inference_id: str | None = None
    episode_id: str | None = None
    metric_name: str
    value: Any
    tags: dict[str, Any] | None = None
    dryrun: bool | None = None


class Retraction(Sent):
    """The body of ``DELETE``, or its query."""

    kind: Literal["thumb", "stars", "ranking", "edit"]
    response_id: str = ""
    turn_id: str = ""
    idempotency_key: str | None = None


class HttpFeedback:
    """OK means that the vote is on disk."""

    def __init__(self, votes: Votes) -> None:
        self._votes = votes

    async def rate(self, call: Call) -> ASGIApp:
        data = http_json.read(call.body)
        if "metric_name" in data:
            metric = http_json.checked(Metric, data)
            event_id = await self._votes.rate(_request_of(metric, _key(None, call.headers)), caller())
            return JSONResponse({"feedback_id": event_id})
        rating = http_json.checked(Rating, data)
        event_id = await self._votes.rate(_request(rating, _key(rating.idempotency_key, call.headers)), caller())
        return JSONResponse({"event_id": event_id})

    async def retract(self, call: Call) -> ASGIApp:
        data = http_json.read(call.body) if call.body else dict(call.query)
        retraction = http_json.checked(Retraction, data)
        request = RetractRequest(
            response_id=retraction.response_id,
            turn_id=retraction.turn_id,
            kind=KINDS[retraction.kind],
            idempotency_key=_key(retraction.idempotency_key, call.headers),
        )
        return JSONResponse({"event_id": await self._votes.retract(request, caller())})


def _key(given: str | None, headers: Headers) -> str:
    """Who sends none may repeat a call too: it casts the vote anew, and of equal votes one counts."""
    return given if given is not None else headers.get("idempotency-key") or secrets.token_hex(16)


def _request(rating: Rating, key: str) -> RateRequest:
    given = [kind for kind in KINDS if getattr(rating, kind) is not None]
    if len(given) != 1:
        raise InvalidInput(given[1] if given else "vote", "send one of thumb, stars, ranking and edit")
    request = RateRequest(
        response_id=rating.response_id, idempotency_key=key, reasons=rating.reasons, comment=rating.comment or ""
    )
    if rating.thumb is not None:
        request.thumb = THUMBS[rating.thumb]
    elif rating.stars is not None:
        request.stars = rating.stars
    elif rating.edit is not None:
        request.edit = rating.edit
    for rank, tied in enumerate(rating.ranking or (), start=1):
        request.ranking.items.extend(record_pb2.RankedResponse(response_id=name, rank=rank) for name in tied)
    if rating.ranking is not None:
        request.ranking.SetInParent()  # an empty one is a ranking too, and refused as such
    return request


def _request_of(metric: Metric, key: str) -> RateRequest:
    if metric.dryrun:
        raise InvalidInput("dryrun", "not supported: every vote that is accepted is kept")
    if metric.inference_id is None:
        raise InvalidInput("inference_id", "missing: answers are rated here, not episodes")
    request = RateRequest(response_id=metric.inference_id, idempotency_key=key)
    kind, value = METRICS.get(metric.metric_name), metric.value
    match kind:
        case "thumb" if isinstance(value, bool):
            request.thumb = record_pb2.THUMB_UP if value else record_pb2.THUMB_DOWN
        case "stars" if isinstance(value, int | float) and not isinstance(value, bool) and value in range(1, 6):
            request.stars = int(value)
        case "edit":
            request.edit = _text(value)
        case None:
            raise InvalidInput("metric_name", f"must be one of {', '.join(METRICS)}")
        case _:
            raise InvalidInput("value", "must be true or false" if kind == "thumb" else "must be 1 to 5")
    return request


def _text(value: Any) -> str:
    """A demonstration: a text, or TensorZero's blocks of text."""
    if isinstance(value, str):
        return value
    blocks = value if isinstance(value, list) else []
    texts = [block["text"] for block in blocks if isinstance(block, dict) and isinstance(block.get("text"), str)]
    if not texts or len(texts) < len(blocks):
        raise InvalidInput("value", "must be a text")
    return "".join(texts)
