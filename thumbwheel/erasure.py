"""The right to be forgotten.

    tombstone ─► every turn of the person with its votes ─► what still waits in the vote stream ─► news for the caches

The tombstone comes first: what was on its way when it was set is refused from then on, so nothing comes back behind the
removal. Weights do not forget. Which versions have learned from whom is noted while they are made, and told here.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from thumbwheel.errors import CorruptRecord
from thumbwheel.records import MAX_ANSWERS, unseal
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.time_index import newest_first
from thumbwheel.vote_stream import GROUP
from thumbwheel_client.v1.record_pb2 import VersionRecord, VoteEvent

_BATCH: Final = 200


@dataclass(frozen=True, slots=True)
class Erased:
    """How many turns and current votes were removed, and the versions that had learned from them, oldest first; those
    that were trained from such a version are among them."""

    turns: int
    votes: int
    versions: tuple[str, ...]


class Erasure:
    """Of one namespace. A rater is the HMAC under which a person is known here."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def erase(self, rater: str) -> Erased:
        """Removes a person. After a failure call it again: it goes on where it was.

        Raises:
            StoreUnavailable: not everything is removed yet.
        """
        keys = self._store.keys
        await self._store.script("bury_person", [keys.erased], [rater, int(time.time() * 1000)], durable=True)
        turns = votes = 0
        async with aclosing(newest_first(self._store, keys.owned_by(rater))) as walk:
            names = [place.turn_id async for place in walk]
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            fields = [f"v{index}" for index in range(MAX_ANSWERS)]
            answered = await self._store.batch([("HMGET", keys.turn(name), *fields) for name in part])
            for name, versions in zip(part, answered, strict=True):
                votes += await self._erase_turn(rater, name, {v.decode() for v in versions if v})
                turns += 1
        await self._erase_waiting(rater)
        await self._store.call("INCR", keys.erasures)
        return Erased(turns, votes, await self._learned(rater))

    async def erasures(self) -> int:
        """Grows with every erasure: when it does, caches and the learner's pages have something to forget."""
        return int(await self._store.call("GET", self._store.keys.erasures) or 0)

    async def note_learned(self, version: str, raters: Iterable[str]) -> None:
        """Writes down whom a version has learned from; before the version goes live."""
        await self._store.batch([("SADD", self._store.keys.learned(rater), version) for rater in raters])

    async def erased_since(self, raters: Iterable[str], millis: int) -> bool:
        """Whether one of these people was erased at or after a time (ms)."""
        asked = sorted(raters)
        if not asked:
            return False
        times = await self._store.call("HMGET", self._store.keys.erased, *asked)
        return any(when is not None and int(when) >= millis for when in times)

    async def _erase_turn(self, rater: str, name: str, versions: set[str]) -> int:
        keys = self._store.keys
        touched = [
            keys.turn(name), keys.current(name), keys.turns, keys.rated, keys.owned_by(rater), keys.rated_by(rater),
            *(keys.answers(version) for version in sorted(versions)),
        ]  # fmt: skip
        return int(await self._store.script("erase_turn", touched, [name]))

    async def _erase_waiting(self, rater: str) -> None:
        """Events that no version has learned from yet; older ones are gone from the stream."""
        keys, after = self._store.keys, "-"
        while True:
            page = await self._store.call("XRANGE", keys.votes, after, "+", "COUNT", _BATCH)
            mine = [name.decode() for name, fields in page if _is_by(rater, fields)]
            if mine:
                await self._store.script("erase_votes", [keys.votes], [GROUP, *mine])
            if len(page) < _BATCH:
                return
            after = f"({page[-1][0].decode()}"

    async def _learned(self, rater: str) -> tuple[str, ...]:
        direct = {name.decode() for name in await self._store.call("SMEMBERS", self._store.keys.learned(rater))}
        registry, token, known = Registry(self._store), "", list[VersionRecord]()
        while True:
            page, token = await registry.page(_BATCH, token)
            known += page
            if not token:
                break
        found: list[str] = []
        for record in sorted(known, key=lambda record: record.adapter_id):  # parents before children
            if record.name in direct or record.parent in found:
                found.append(record.name)
        return tuple(found)


def _is_by(rater: str, fields: list[bytes]) -> bool:
    # First as bytes: to take apart a whole backlog for one person would keep a server from everybody else for seconds.
    if not any(rater.encode() in field for field in fields):
        return False
    try:
        return unseal(VoteEvent, dict(zip(fields[::2], fields[1::2], strict=True))[b"v"]).rater == rater
    except (CorruptRecord, KeyError):
        return False
