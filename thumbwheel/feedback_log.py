"""The feedback log: votes, durable before they are answered."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final, NamedTuple

from thumbwheel import config
from thumbwheel.errors import Conflict, CorruptRecord, InvalidInput, NotAllowed, NotFound
from thumbwheel.group_commit import GroupCommit
from thumbwheel.records import seal, split_response_id, unseal
from thumbwheel.store import Store, Value
from thumbwheel.time_index import Place, newest_first
from thumbwheel.vote_stream import StreamId
from thumbwheel_client.v1.record_pb2 import VOTE_KIND_RANKING, VoteEvent

log = logging.getLogger("thumbwheel.feedback_log")

_HOUR_MS: Final = 3_600_000
_BATCH: Final = 100

CurrentVotes = list[tuple[str, VoteEvent]]
"""Event id and vote, in the order in which they were cast."""


class Kept(NamedTuple):
    """A vote's place in the stream, and the version that it speaks of; None for the repetition of a call."""

    event_id: str
    version: str | None


class FeedbackLog:
    """Votes of one namespace. `corrupt` votes failed their checksum."""

    def __init__(self, store: Store, settings: config.Feedback) -> None:
        self.corrupt = 0
        self._store = store
        self._write = GroupCommit(store, "vote")
        self._lifetime = int(settings.idempotency_hours * _HOUR_MS)

    async def append(self, event: VoteEvent, idempotency_key: str) -> Kept:
        """Keeps a vote, or takes one back (`retracted`).

        It is on disk when this returns, as far as this Redis can say. The same call again answers the same and counts
        once, whatever its `created_at`.

        Raises:
            InvalidInput: a ranking names an answer of another turn, or one twice.
            NotFound: no such turn or answer; or there is no vote to take back.
            NotAllowed: the turn is somebody else's.
            Conflict: the idempotency key came with other content before.
            StoreUnavailable: it may or may not have been kept: try again with the same key.
        """
        keys, turn_id = self._store.keys, event.turn_id
        touched = [
            keys.idempotency(event.rater, idempotency_key),
            keys.turn(turn_id),
            keys.current(turn_id),
            keys.votes,
            keys.turns,
            keys.rated,
            keys.rated_by(event.rater),
        ]
        args: list[Value] = [turn_id, event.rater, _digest(event), seal(event), _vote_field(event)]
        args += [int(event.retracted), self._lifetime, *_answer_fields(event)]
        reply = await self._write.run(touched, args)
        match reply[0].decode():
            case "OK":
                return Kept(reply[1].decode(), reply[2].decode() if len(reply) > 2 else None)
            case "CONFLICT":
                raise Conflict("this idempotency key came with another vote before; use a new one")
            case "NOT_ALLOWED":
                raise NotAllowed("only the one who asked may rate the answer")
            case "NO_VOTE":
                raise NotFound("there is no such vote to take back")
            case _:
                raise NotFound(f"no response {event.response_id!r}" if event.response_id else f"no turn {turn_id!r}")

    async def current(self, turn_ids: Sequence[str]) -> dict[str, CurrentVotes]:
        """The current votes of each of these turns, in one round trip."""
        replies = await self._store.batch([("HGETALL", self._store.keys.current(name)) for name in turn_ids])
        return {name: self._votes(name, reply[1::2]) for name, reply in zip(turn_ids, replies, strict=True)}

    async def page(
        self, *, rater: str | None = None, turn_id: str | None = None, size: int, token: str = ""
    ) -> tuple[CurrentVotes, str]:
        """The current votes of up to `size` turns, newest turn first, and the token of the next page ("" at the end).

        Args:
            rater: only this one's votes.
            turn_id: only votes on this turn.

        Raises:
            InvalidInput: the token is not one of ours.
        """
        before = Place.of_token(token) if token else None
        if turn_id is not None:
            votes = (await self.current([turn_id]))[turn_id]
            return [vote for vote in votes if rater is None or vote[1].rater == rater], ""
        index = self._store.keys.rated if rater is None else self._store.keys.rated_by(rater)
        places: list[Place] = []
        async with aclosing(newest_first(self._store, index, before, size + 1)) as walk:
            async for place in walk:
                places.append(place)
                if len(places) > size:
                    break
        shown = places[:size]
        found = await self.current([place.turn_id for place in shown])
        votes = [vote for place in shown for vote in found[place.turn_id]]
        return votes, shown[-1].token() if len(places) > size else ""

    async def rated_count(self, *, rater: str | None = None, turn_id: str | None = None) -> int:
        """How many turns have a current vote, as `page` walks them all; one turn counts whether or not it has any."""
        if turn_id is not None:
            return 1
        keys = self._store.keys
        return int(await self._store.call("ZCARD", keys.rated if rater is None else keys.rated_by(rater)))

    async def rated_turns(self, limit: int) -> AsyncGenerator[str, None]:
        """Ids of up to `limit` turns with a current vote, newest first."""
        if limit <= 0:
            return
        async with aclosing(newest_first(self._store, self._store.keys.rated)) as walk:
            async for place in walk:
                yield place.turn_id
                limit -= 1
                if limit == 0:
                    return

    def _votes(self, turn_id: str, values: Sequence[bytes]) -> CurrentVotes:
        votes: CurrentVotes = []
        for value in values:
            event_id, _, sealed = value.partition(b" ")
            try:
                votes.append((event_id.decode(), unseal(VoteEvent, sealed)))
            except (CorruptRecord, UnicodeDecodeError) as error:
                self.corrupt += 1
                log.error("corrupt_vote", extra={"turn_id": turn_id, "error": str(error)})
        return sorted(votes, key=lambda vote: StreamId.parse(vote[0]))


def _answer_fields(event: VoteEvent) -> list[str]:
    """Fields of the turn that must exist for this vote to make sense."""
    if event.kind != VOTE_KIND_RANKING:
        turn_id, index = split_response_id(event.response_id)
        if turn_id != event.turn_id:
            raise NotFound(f"no response {event.response_id!r}")
        return [f"r{index}"]
    fields: list[str] = []
    for i, item in enumerate(event.ranking.items):
        turn_id, index = split_response_id(item.response_id)
        if turn_id != event.turn_id:
            raise InvalidInput(f"ranking.items[{i}].response_id", "belongs to another turn")
        if f"r{index}" in fields:
            raise InvalidInput(f"ranking.items[{i}].response_id", "is ranked twice")
        fields.append(f"r{index}")
    return fields


def _vote_field(event: VoteEvent) -> str:
    """Names the vote that this one replaces: a rater has one per answer (or turn, for rankings) and kind."""
    target = event.response_id.rpartition("-")[2] if event.response_id else "-"
    return f"{event.rater} {event.kind} {target}"


def _digest(event: VoteEvent) -> str:
    """sha256 of what the rater said; a repeated call carries a later time, and is another step of a trace."""
    said = VoteEvent()
    said.CopyFrom(event)
    said.ClearField("created_at")
    said.ClearField("traceparent")
    return hashlib.sha256(said.SerializeToString(deterministic=True)).hexdigest()
