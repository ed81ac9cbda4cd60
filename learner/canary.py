"""Whether people like the new version less than the old one, and what follows from it. No weights, only votes.

    on trial:          canary beside live, both at once      ──► live, or rolled back
    after a direct     live beside the version before it,    ──► stays, or rolled back
    release:           whose votes lie in the past

Of each rater the first vote on either version counts, as it was cast. They are read from the vote stream in its order,
so a learner that is killed comes to the same judgement again. Beside them, guard-rails watch the answers of a trial.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from dataclasses import dataclass, field
from datetime import UTC

import numpy as np
from numpy.typing import NDArray

from learner import metrics, rails
from learner.betting import DropTest
from thumbwheel import config
from thumbwheel.errors import Conflict, CorruptRecord, NotReady
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.opinion import verdict
from thumbwheel.records import split_response_id
from thumbwheel.registry import Registry
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel.vote_stream import StreamId, VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

log = logging.getLogger("thumbwheel.learner.canary")

ALPHA = 0.04
"""Chance, over a whole trial, that a version which is liked as well as the old one is taken back."""
VOTES_PER_READ = 500
TURNS_BEFORE = 2000
"""Latest turns of the version before that are looked through for its votes, after a direct release."""
ANSWERS_LOOKED_AT = 5000
"""Latest answers of either version that the guard-rails see."""
RAILS_SECONDS = 60.0
_LINEAGE = 10


@dataclass(slots=True)
class _Match:
    """A new version against an old one, from `began` on."""

    new: str
    old: str
    began: StreamId
    trial: bool
    """On trial; else watched after a direct release."""
    test: DropTest
    last: StreamId
    counted: set[tuple[str, str]] = field(default_factory=set)
    """(rater, version) whose first vote has been counted."""
    ratings: int = 0
    """Raters on the new version."""
    looks: list[int] = field(default_factory=lambda: list(rails.LOOKS))
    """People an arm at whom the guard-rails have not looked yet."""
    next_rails: float = 0.0
    over: bool = False

    def count(self, rater: str, version: str) -> bool:
        """Whether this vote is the rater's first on the version."""
        first = (rater, version) not in self.counted
        self.counted.add((rater, version))
        return first


class Judge:
    """Call `look` again and again, as the leader."""

    def __init__(
        self, registry: Registry, stream: VoteStream, turns: TurnLog, feedback: FeedbackLog, settings: config.Release
    ) -> None:
        self._registry = registry
        self._stream = stream
        self._turns = turns
        self._feedback = feedback
        self._settings = settings
        self._match: _Match | None = None

    async def look(self) -> bool:
        """Reads the votes that came since, and ends a trial or watch that they decide; true while a trial goes on."""
        match = await self._find()
        if match is None or match.over:
            return False
        while events := await self._stream.after(match.last, VOTES_PER_READ):
            votes = [event for _, event in events if event is not None]
            turns = await self._turns.get_many([event.turn_id for event in votes])
            for event, turn in zip(votes, turns, strict=True):
                if turn is not None:
                    self._count(match, event, turn)
                if match.test.rejects(ALPHA):
                    await self._decide(match, "rolled_back")
                    return False
            match.last = events[-1][0]
            await self._show(match)
        if match.trial and (alarms := await self._alarms(match)):
            await self._decide(match, "rolled_back", f"guard-rails: {', '.join(alarms)}")
            return False
        hours = (time.time() * 1000 - match.began.millis) / 3_600_000
        if match.ratings >= self._settings.ratings or hours >= self._settings.max_hours:
            await self._decide(match, "promoted" if match.trial else "kept")
            return False
        return match.trial

    async def _find(self) -> _Match | None:
        """The match under way; a new one where a cycle has put a version on trial, or live, since."""
        live, canary = await self._registry.live(), await self._registry.canary()
        new = canary or live
        if self._match is not None and (self._match.new, self._match.trial) == (new.name, canary is not None):
            return self._match
        self._match = None
        outcome = "released" if canary is None else "on_trial"
        # What an operator made live is the operator's to watch.
        for cycle in await self._registry.lineage(_LINEAGE):
            if (cycle.version, cycle.outcome) == (new.name, outcome):
                self._match = await self._begin(cycle, trial=canary is not None)
                break
        return self._match

    async def _begin(self, cycle: pb.CycleRecord, *, trial: bool) -> _Match:
        began = StreamId(cycle.finished_at.ToMilliseconds(), 0)
        match = _Match(cycle.version, cycle.batch.parent, began, trial, DropTest(), began)
        if not trial:
            before = await self._before(match)
            match.test = DropTest(before, expected=self._settings.ratings)
        log.info(
            "trial_begins" if trial else "watch_begins",
            extra={"version": match.new, "beside": match.old, "since": cycle.finished_at.ToDatetime(UTC).isoformat()},
        )
        return match

    async def _before(self, match: _Match) -> list[bool]:
        """The old version's votes from before the release, oldest first."""
        found = list[tuple[StreamId, pb.VoteEvent, Turn]]()
        turns = [turn async for turn in self._turns.recent(TURNS_BEFORE, match.old)]
        for start in range(0, len(turns), VOTES_PER_READ):
            part = {turn.record.turn_id: turn for turn in turns[start : start + VOTES_PER_READ]}
            for turn_id, votes in (await self._feedback.current(list(part))).items():
                found += [(StreamId.parse(name), event, part[turn_id]) for name, event in votes]
        good = []
        for when, event, turn in sorted(found, key=lambda entry: entry[0]):
            opinion = verdict(event)
            if opinion is None or when >= match.began or version_of(event, turn) != match.old:
                continue
            if match.count(event.rater, match.old):
                good.append(opinion)
        return good

    def _count(self, match: _Match, event: pb.VoteEvent, turn: Turn) -> None:
        opinion = verdict(event)
        if opinion is None:
            return
        version = version_of(event, turn)
        # Answers from before the trial have no counterpart; after a release the old arm is complete.
        asked = turn.record.created_at.ToMilliseconds()
        arms = (match.new, match.old) if match.trial else (match.new,)
        if version is None or version not in arms or asked < match.began.millis:
            return
        if match.count(event.rater, version):
            match.ratings += version == match.new
            match.test.add(version == match.new, opinion)

    async def _show(self, match: _Match) -> None:
        doubt = match.test.log_peak / -math.log(ALPHA)
        with contextlib.suppress(CorruptRecord):  # it is a figure for people, and no more
            await self._registry.add_metrics(match.new, {"trial_raters": match.ratings, "trial_doubt": doubt})

    async def _alarms(self, match: _Match) -> list[str]:
        """What the guard-rails say, if it is time for a look."""
        if not match.looks or time.monotonic() < match.next_rails:
            return []
        match.next_rails = time.monotonic() + RAILS_SECONDS
        new, old = await self._people(match, match.new), await self._people(match, match.old)
        due = [look for look in match.looks if look <= min(len(new), len(old))]
        match.looks = match.looks[len(due) :]
        return rails.alarms(new, old) if due else []

    async def _people(self, match: _Match, version: str) -> NDArray[np.float64]:
        """(people, rails): of everybody the first answer by `version` since the trial began, as far as it is kept."""
        found: dict[str, tuple[float, ...]] = {}
        async with contextlib.aclosing(self._turns.recent(ANSWERS_LOOKED_AT, version)) as turns:
            async for turn in turns:
                if turn.record.created_at.ToMilliseconds() < match.began.millis:
                    break
                answer = turn.responses.get(0)
                made_by = [] if answer is None or turn.record.pinned else [span.version for span in answer.spans]
                if answer is not None and made_by == [version]:
                    found[turn.record.owner] = rails.figures(turn.record, answer)  # newest first: the oldest stays
        return np.array(list(found.values()), np.float64).reshape(len(found), len(rails.RAILS))

    async def _decide(self, match: _Match, decision: str, why: str = "") -> None:
        control = "at the same time" if match.trial else "before its release"
        reason = (
            f"{decision.replace('_', ' ')} after {match.ratings} raters: against {match.old} {control}, the evidence"
            f" that it is liked less is {match.test.log_peak:.2f} of {-math.log(ALPHA):.2f} nats"
        )
        if why:
            reason = f"{why}; {reason}"
        try:
            if match.trial:
                await self._registry.end_trial(match.new, reason, promote=decision == "promoted")
            elif decision == "rolled_back":
                await self._registry.roll_back(reason, expected_live=match.new)
        except (Conflict, NotReady) as error:  # an operator was faster, and what operators choose stands
            match.over = True
            log.warning("decision_void", extra={"version": match.new, "decision": decision, "reason": str(error)})
            return
        except CorruptRecord as error:
            decision, reason = "rolled_back", f"it cannot go live: {error}"
            await self._registry.end_trial(match.new, reason, promote=False)
        match.over = True
        metrics.canary_decisions.labels(decision).inc()
        log.info("decided", extra={"version": match.new, "decision": decision, "reason": reason})


def version_of(event: pb.VoteEvent, turn: Turn) -> str | None:
    """The one version that made the answer which a vote is on, if the caller did not choose it."""
    _, index = split_response_id(event.response_id)
    response = turn.responses.get(index)
    if turn.record.pinned or response is None or len(response.spans) != 1:
        return None
    return response.spans[0].version
