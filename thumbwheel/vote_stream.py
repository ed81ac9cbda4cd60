"""The learner's side of the votes: delivered at least once, of effect once.

    XREADGROUP -> freeze a manifest under the fence -> (train) -> Registry.commit_cycle acknowledges it

There is one consumer: the lease decides who acts for it, so what a killed learner left pending needs no claiming.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import Any, Final

from redis.exceptions import ResponseError

from thumbwheel.errors import Conflict, CorruptRecord, LeaseLost
from thumbwheel.lease import Lease
from thumbwheel.records import now, seal, unseal
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import BatchManifest, VoteEvent

log = logging.getLogger("thumbwheel.vote_stream")

GROUP: Final = "learner"
DEAD_KEPT: Final = 10_000
"""Corrupt records kept for a person to look at."""
_CONSUMER: Final = "leader"

Entry = tuple[str, bytes | None]
"""Event id and sealed VoteEvent; None if the stream no longer has it."""


@dataclass(frozen=True, slots=True, order=True)
class StreamId:
    """An id of a stream entry, ordered as Redis orders it (as text "10-0" would come before "9-0")."""

    millis: int
    sequence: int

    @classmethod
    def parse(cls, text: bytes | str) -> StreamId:
        millis, _, sequence = (text.decode() if isinstance(text, bytes) else text).partition("-")
        return cls(int(millis), int(sequence or 0))

    def __str__(self) -> str:
        return f"{self.millis}-{self.sequence}"

    def next(self) -> StreamId:
        return StreamId(self.millis, self.sequence + 1)


async def lowest_untrained(store: Store) -> StreamId:
    """The id at and above which no vote belongs to a committed batch."""
    group = await _group(store)
    # In this order: what is acknowledged meanwhile only makes the answer too low, which is the safe side.
    pending = await store.call("XPENDING", store.keys.votes, GROUP)
    delivered = StreamId.parse(group[b"last-delivered-id"]).next()
    return min(delivered, StreamId.parse(pending[1])) if pending[1] is not None else delivered


class VoteStream:
    """Votes waiting to train."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def waiting(self) -> int:
        """Votes in no committed batch."""
        group = await _group(self._store)
        fresh = group[b"lag"]
        if fresh is None:  # Redis cannot say after somebody deleted entries by hand
            fresh = await self._count_after(group[b"last-delivered-id"].decode())
        return int(group[b"pending"] + fresh)

    async def after(self, last: StreamId, count: int) -> list[tuple[StreamId, VoteEvent | None]]:
        """The next votes after `last` in the order they were cast, at most `count`; None for one that is unreadable."""
        reply = await self._store.call("XRANGE", self._store.keys.votes, f"({last}", "+", "COUNT", count)
        return [(StreamId.parse(name), _vote(_body(fields))) for name, fields in reply]

    async def dead_letters(self) -> int:
        """Votes, and batches' manifests, that could not be read; the votes train nothing."""
        return int(await self._store.call("XLEN", self._store.keys.dead))

    async def freeze(self, lease: Lease, cycle_id: str, parent: str, seed: int, max_votes: int) -> BatchManifest:
        """The input of the cycle under way.

        If a learner was killed before it committed, this is its manifest, with its cycle id, parent and seed. Otherwise
        the oldest `max_votes` waiting votes are frozen under the given names; none waiting makes an empty batch.

        Raises:
            LeaseLost: somebody else has led since; nothing was frozen.
            Conflict: a cycle of this id was committed before.
        """
        try:
            kept = await self._manifest(lease, cycle_id, b"")
        except CorruptRecord as error:
            log.error("manifest_unreadable", extra={"error": str(error)})
            await self.thaw(lease, unreadable=True)
            kept = None
        if kept is not None:
            return kept
        await _group(self._store)
        entries = [entry for entry in await self._deliver(max_votes) if await self._readable(entry) is not None]
        manifest = BatchManifest(
            cycle_id=cycle_id,
            event_ids=[event_id for event_id, _ in entries],
            digest=_digest(entries),
            parent=parent,
            seed=seed,
            created_at=now(),
        )
        frozen = await self._manifest(lease, cycle_id, seal(manifest))
        assert frozen is not None
        return frozen

    async def thaw(self, lease: Lease, *, unreadable: bool = False) -> None:
        """Lets go of the frozen batch; its votes wait again. An unreadable manifest goes to the dead letters.

        Raises:
            LeaseLost: somebody else has led since; nothing was changed.
        """
        keys = self._store.keys
        touched = [keys.fence, keys.manifest, keys.dead]
        if not await self._store.script("thaw", touched, [lease.token, int(unreadable), DEAD_KEPT]):
            raise LeaseLost(f"lease {lease.token} is no longer the newest: nothing was thawed")

    async def read(self, manifest: BatchManifest) -> list[tuple[str, VoteEvent]]:
        """The votes of a batch, in order. One that cannot be read goes to the dead letters and is left out.

        Raises:
            CorruptRecord: every vote can be read, but they are not those that were frozen: somebody changed them.
        """
        votes = self._store.keys.votes
        replies = await self._store.batch([("XRANGE", votes, name, name) for name in manifest.event_ids])
        entries: list[Entry] = []
        for name, reply in zip(manifest.event_ids, replies, strict=True):
            entries.append((name, _body(reply[0][1]) if reply else None))
        events = [(entry[0], await self._readable(entry)) for entry in entries]
        readable = [(name, event) for name, event in events if event is not None]
        if len(readable) == len(entries) and _digest(entries) != manifest.digest:
            raise CorruptRecord(f"the votes of cycle {manifest.cycle_id} are not those that it froze")
        return readable

    async def trim(self) -> int:
        """Drops votes that have trained, below the lowest that has not; returns how many."""
        lowest = await lowest_untrained(self._store)
        return int(await self._store.call("XTRIM", self._store.keys.votes, "MINID", str(lowest)))

    async def _manifest(self, lease: Lease, cycle_id: str, sealed: bytes) -> BatchManifest | None:
        keys = self._store.keys
        touched = [keys.fence, keys.manifest, keys.done]
        reply = await self._store.script("freeze", touched, [lease.token, cycle_id, sealed])
        if reply[0] == b"FENCED":
            raise LeaseLost(f"lease {lease.token} is no longer the newest: nothing was frozen")
        if reply[0] == b"DONE":
            raise Conflict(f"cycle {cycle_id} has been committed already; a cycle id is never used again")
        return unseal(BatchManifest, reply[1]) if reply[0] == b"OK" else None

    async def _deliver(self, most: int) -> list[Entry]:
        """Up to `most` entries, those that were delivered before and never committed first."""
        entries = await self._read_group("0", most)
        if len(entries) < most:
            entries += await self._read_group(">", most - len(entries))
        return entries

    async def _read_group(self, after: str, most: int) -> list[Entry]:
        command = ("XREADGROUP", "GROUP", GROUP, _CONSUMER, "COUNT", most, "STREAMS", self._store.keys.votes, after)
        reply = await self._store.call(*command)
        return [(name.decode(), _body(fields)) for name, fields in reply[0][1]] if reply else []

    async def _readable(self, entry: Entry) -> VoteEvent | None:
        name, body = entry
        try:
            if body is None:
                raise CorruptRecord("the stream does not have it")
            return unseal(VoteEvent, body)
        except CorruptRecord as error:
            keys = self._store.keys
            if await self._store.script("bury", [keys.votes, keys.dead], [GROUP, name, body or b"", DEAD_KEPT]):
                log.error("vote_unreadable", extra={"event_id": name, "error": str(error)})
            return None

    async def _count_after(self, last: str) -> int:
        count = 0
        while True:
            page = await self._store.call("XRANGE", self._store.keys.votes, f"({last}", "+", "COUNT", 1000)
            count += len(page)
            if len(page) < 1000:
                return count
            last = page[-1][0].decode()


async def _group(store: Store) -> dict[bytes, Any]:
    """Facts of the consumer group. Made on first use, from the first vote on."""
    votes = store.keys.votes
    for _ in range(2):
        try:
            for reply in await store.call("XINFO", "GROUPS", votes):
                facts = dict(zip(reply[::2], reply[1::2], strict=True))
                if facts[b"name"] == GROUP.encode():
                    return facts
        except ResponseError as error:
            if "no such key" not in str(error):
                raise
        try:
            await store.call("XGROUP", "CREATE", votes, GROUP, 0, "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
    raise AssertionError("the consumer group vanished twice")


def _vote(body: bytes | None) -> VoteEvent | None:
    try:
        return unseal(VoteEvent, body) if body is not None else None
    except CorruptRecord:
        return None


def _body(fields: list[bytes] | None) -> bytes | None:
    return dict(zip(fields[::2], fields[1::2], strict=True)).get(b"v") if fields else None


def _digest(entries: list[Entry]) -> str:
    """sha256 over ids and bytes, each with its length before it."""
    total = hashlib.sha256()
    for name, body in entries:
        for part in (name.encode(), body or b""):
            total.update(len(part).to_bytes(8, "big"))
            total.update(part)
    return total.hexdigest()
