"""ImportService: votes from elsewhere, each kept or refused by itself, and none twice.

rows ─► intake (checks, tokens) ─► what is known of their turns ─► turns ─► votes ─► a result for each
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from grpc import aio

from server import metrics
from server.access import caller
from server.intake import Arrival, Intake, content_of
from server.limits import Budgets
from thumbwheel.erasure import Erasure
from thumbwheel.errors import InvalidInput, NotAllowed, NotFound
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel_client.v1 import import_pb2_grpc
from thumbwheel_client.v1.import_pb2 import (
    IMPORT_STATUS_KEPT,
    IMPORT_STATUS_KNOWN,
    IMPORT_STATUS_REFUSED,
    ImportedVote,
    ImportResult,
    ImportStatus,
    ImportVotesRequest,
    ImportVotesResponse,
)
from thumbwheel_client.v1.record_pb2 import VoteEvent

log = logging.getLogger("thumbwheel.imports")

MAX_VOTES = 100
ERASED = "the rater was erased after this"
NOT_THEIRS = "another rater's turn has this turn_id"

Place = tuple[str, str, int, str]
"""Turn, rater, kind and answer: where there is one current vote at most."""


@dataclass(frozen=True, slots=True)
class _Step:
    """An arrival that is to be kept, and the event id of the vote that it replaces ("": none)."""

    index: int
    arrival: Arrival
    replaces: str


class ImportService(import_pb2_grpc.ImportServiceServicer):
    """Of two servers that import the same at once, one keeps each vote and the other one finds it."""

    def __init__(self, intake: Intake, turns: TurnLog, votes: FeedbackLog, erasure: Erasure, budgets: Budgets) -> None:
        self._intake = intake
        self._turns = turns
        self._votes = votes
        self._erasure = erasure
        self._budgets = budgets
        self._reader = ThreadPoolExecutor(1, "import")  # tokenizing beside the event loop, one call after the other

    async def ImportVotes(
        self, request: ImportVotesRequest, context: aio.ServicerContext[Any, Any]
    ) -> ImportVotesResponse:
        if not 1 <= len(request.votes) <= MAX_VOTES:
            raise InvalidInput("votes", f"{len(request.votes)}; must be 1 to {MAX_VOTES}")
        await self._budgets.request(caller())
        loop = asyncio.get_running_loop()
        read = await loop.run_in_executor(self._reader, self._read, request.votes, caller().rater)
        results = [entry if isinstance(entry, ImportResult) else ImportResult() for entry in read]
        arrivals = {index: entry for index, entry in enumerate(read) if isinstance(entry, Arrival)}
        steps = await self._new(arrivals, results)
        if request.dry_run:
            await self._look(steps, results)
        else:
            await self._keep(steps, results)
            for result in results:
                metrics.IMPORTED_VOTES.labels(_label(result.status)).inc()
            kept = sum(result.status == IMPORT_STATUS_KEPT for result in results)
            log.info("imported", extra={"votes": len(results), "kept": kept})
        return ImportVotesResponse(results=results)

    def _read(self, votes: Sequence[ImportedVote], rater: str) -> list[Arrival | ImportResult]:
        entries: list[Arrival | ImportResult] = []
        for vote in votes:
            try:
                entries.append(self._intake.read(vote, rater))
            except InvalidInput as error:
                entries.append(_refused(f"{error.field.removeprefix('input.')}: {error.message}"))
        return entries

    async def _new(self, arrivals: dict[int, Arrival], results: list[ImportResult]) -> list[_Step]:
        """Those that say something new; the results of the others are written down."""
        names = list(dict.fromkeys(arrival.turn.turn_id for arrival in arrivals.values()))
        known = _Known(dict(zip(names, await self._turns.get_many(names), strict=True)))
        current = await self._votes.current(names)
        standing = {_place_of(event): (event_id, event) for votes in current.values() for event_id, event in votes}
        # In the order in which they were cast, so that of several the newest is what stays.
        in_order = sorted(arrivals.items(), key=lambda entry: entry[1].event.created_at.ToNanoseconds())
        last = {_place_of(arrival.event): index for index, arrival in in_order}
        steps = []
        for index, arrival in arrivals.items():
            place = _place_of(arrival.event)
            event_id, before = standing.get(place, ("", None))
            if clash := known.clash(arrival):
                results[index] = _refused(clash)
            elif last[place] != index:
                results[index] = ImportResult(status=IMPORT_STATUS_KNOWN)  # a newer one of the same call replaces it
            elif before is not None and (
                content_of(before) == content_of(arrival.event)
                or before.created_at.ToNanoseconds() >= arrival.event.created_at.ToNanoseconds()
            ):
                results[index] = ImportResult(status=IMPORT_STATUS_KNOWN)
            else:
                known.add(arrival)
                steps.append(_Step(index, arrival, event_id))
        return steps

    async def _look(self, steps: Sequence[_Step], results: list[ImportResult]) -> None:
        """What would become of them."""
        for step in steps:
            erased = await self._erasure.erased_since([step.arrival.turn.owner], step.arrival.asked)
            results[step.index] = _refused(ERASED) if erased else ImportResult(status=IMPORT_STATUS_KEPT)

    async def _keep(self, steps: Sequence[_Step], results: list[ImportResult]) -> None:
        """Turns first: a vote needs its answer."""
        brought = await self._turns.bring([(s.arrival.turn, s.arrival.responses, s.arrival.asked) for s in steps])
        there = [step for step, kept in zip(steps, brought, strict=True) if kept]
        for step, kept in zip(steps, brought, strict=True):
            if not kept:
                results[step.index] = _refused(ERASED)
        # Together, and in order: they share their waits for the disk.
        votes = [self._votes.append(step.arrival.event, _key(step)) for step in there]
        for step, vote in zip(there, await asyncio.gather(*votes, return_exceptions=True), strict=True):
            if isinstance(vote, NotAllowed):
                results[step.index] = _refused(NOT_THEIRS)
            elif isinstance(vote, NotFound):
                results[step.index] = _refused("its turn was erased or dropped meanwhile")
            elif isinstance(vote, BaseException):
                raise vote
            else:
                status = IMPORT_STATUS_KNOWN if vote.version is None else IMPORT_STATUS_KEPT
                results[step.index] = ImportResult(status=status)


class _Known:
    """Whose the turns are, and what their answers say."""

    def __init__(self, turns: dict[str, Turn | None]) -> None:
        self._owners = {name: turn.record.owner for name, turn in turns.items() if turn is not None}
        self._texts = {
            response.response_id: response.text
            for turn in turns.values()
            if turn is not None
            for response in turn.responses.values()
        }

    def clash(self, arrival: Arrival) -> str:
        """Why this cannot be what is known; empty if it can."""
        if self._owners.get(arrival.turn.turn_id, arrival.turn.owner) != arrival.turn.owner:
            return NOT_THEIRS
        for response in arrival.responses:
            if self._texts.get(response.response_id, response.text) != response.text:
                return f"answer {response.index} of this turn_id says something else here"
        return ""

    def add(self, arrival: Arrival) -> None:
        self._owners[arrival.turn.turn_id] = arrival.turn.owner
        self._texts |= {response.response_id: response.text for response in arrival.responses}


def _place_of(event: VoteEvent) -> Place:
    return event.turn_id, event.rater, event.kind, event.response_id


def _key(step: _Step) -> str:
    """The same for whoever brings the same vote in the place of the same one, so that it counts once."""
    return hashlib.sha256(f"{step.replaces}\0".encode() + content_of(step.arrival.event)).hexdigest()


def _refused(reason: str) -> ImportResult:
    return ImportResult(status=IMPORT_STATUS_REFUSED, reason=reason)


def _label(status: ImportStatus.ValueType) -> str:
    return ImportStatus.Name(status).removeprefix("IMPORT_STATUS_").lower()
