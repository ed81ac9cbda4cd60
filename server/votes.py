"""Votes, whichever door they came through: checked, counted against their caller's limits, and on disk."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from server import metrics
from server.access import Caller
from server.limits import Budgets
from server.turns import STORE, Turns
from server.vote_input import retraction_of, vote_of
from thumbwheel import config, tracing
from thumbwheel.errors import NotFound
from thumbwheel.feedback_log import FeedbackLog, Kept
from thumbwheel_client.v1 import feedback_pb2, record_pb2

WRITTEN_SECONDS = 2.0
"""For which a vote waits for its answer: who leaves a stream may rate at once what was seen of it."""


class Votes:
    """Returning means that the vote is on disk; everything that can be said without the store is said before it is
    asked."""

    def __init__(self, kept: FeedbackLog, turns: Turns, budgets: Budgets, limits: config.Feedback) -> None:
        self._kept = kept
        self._turns = turns
        self._budgets = budgets
        self._limits = limits

    async def rate(self, request: feedback_pb2.RateRequest, caller: Caller) -> str:
        """Keeps a vote; returns its place in the vote stream.

        Raises:
            InvalidInput: names the field.
            Overloaded: the caller has used up a limit.
            As `FeedbackLog.append` does.
        """
        return await self._append(vote_of(request, caller.rater, self._limits), request.idempotency_key, caller)

    async def retract(self, request: feedback_pb2.RetractRequest, caller: Caller) -> str:
        """Takes a vote back; returns and raises as `rate`."""
        return await self._append(retraction_of(request, caller.rater), request.idempotency_key, caller)

    async def _append(self, event: record_pb2.VoteEvent, idempotency_key: str, caller: Caller) -> str:
        await self._budgets.request(caller)
        began = time.monotonic()
        event.traceparent = tracing.traceparent()
        with tracing.span("append_vote", STORE):
            kept = await self._keep(event, idempotency_key)
        metrics.VOTE_SECONDS.observe(time.monotonic() - began)
        if kept.version is not None:
            kind = record_pb2.VoteKind.Name(event.kind).removeprefix("VOTE_KIND_").lower()
            metrics.count_vote(kind, _value_label(event), kept.version or "unknown")
        return kept.event_id

    async def _keep(self, event: record_pb2.VoteEvent, idempotency_key: str) -> Kept:
        try:
            return await self._kept.append(event, idempotency_key)
        except NotFound:
            with suppress(TimeoutError):
                async with asyncio.timeout(WRITTEN_SECONDS):
                    if await self._turns.written(event.turn_id):
                        return await self._kept.append(event, idempotency_key)
            raise


def _value_label(event: record_pb2.VoteEvent) -> str:
    if event.retracted:
        return "retracted"
    match event.WhichOneof("value"):
        case "thumb":
            return "up" if event.thumb == record_pb2.THUMB_UP else "down"
        case "stars":
            return str(event.stars)
        case _:
            return ""
