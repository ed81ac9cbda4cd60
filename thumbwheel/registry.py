"""The registry: every version, who is live, and how each cycle ended.

    candidate ──promote──► live ──a newer one is promoted──► retired
        │                   └────roll_back────► rolled back
        ├──on trial──► canary ──end_trial──► live or rolled back
        └──gate or server──► rejected

At most one version is on trial, beside the live one that it was trained from; if that one changes, the trial ends.

Records and the live pointer change together: read, decide here, and write in one script that refuses if anything it was
decided on has changed since. A write that has already happened is a success, so a repeated call does no harm.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from thumbwheel.errors import Conflict, CorruptRecord, InvalidInput, LeaseLost, NotFound, NotReady, StoreUnavailable
from thumbwheel.lease import Lease
from thumbwheel.records import now, seal, unseal
from thumbwheel.store import Store, Value
from thumbwheel.vote_stream import GROUP
from thumbwheel_client.v1 import record_pb2
from thumbwheel_client.v1.record_pb2 import CycleRecord, VersionRecord, VersionState

log = logging.getLogger("thumbwheel.registry")

BASE: Final = "base"
BLOCK_SECONDS: Final = 5.0
"""How long one wait for changes lasts; only a sign of life, a change comes at once."""
RETRY_SECONDS: Final = 0.2
_HISTORY: Final = 100
_CHANGES_KEPT: Final = 1000
_ATTEMPTS: Final = 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TAKEN_BACK: Final = (record_pb2.VERSION_STATE_REJECTED, record_pb2.VERSION_STATE_ROLLED_BACK)
_ON_TRIAL: Final = "?"
"""Before the name of the canary, at the end of the pointer; no name begins so."""
_NEVER_LIVE: Final = (record_pb2.VERSION_STATE_REJECTED, record_pb2.VERSION_STATE_TRAINING)


@dataclass(frozen=True, slots=True)
class _Pointer:
    """Names of the live version and of those live before it, newest first, and of the one on trial ("" if none); `raw`
    is how they are stored: one value, so that they cannot be read or changed apart."""

    names: tuple[str, ...]
    canary: str = ""

    @property
    def raw(self) -> str:
        trial = (_ON_TRIAL + self.canary,) if self.canary else ()
        return "" if self.names == (BASE,) and not trial else " ".join((*self.names, *trial))

    @classmethod
    def parse(cls, raw: bytes | None) -> _Pointer:
        names = raw.decode().split() if raw else [BASE]
        if names[-1].startswith(_ON_TRIAL):
            return cls(tuple(names[:-1]), names[-1].removeprefix(_ON_TRIAL))
        return cls(tuple(names))

    @property
    def live(self) -> str:
        return self.names[0]


@dataclass(frozen=True, slots=True)
class _Change:
    """A record as it was read and as it shall be."""

    old: bytes
    new: VersionRecord


class Registry:
    """Versions of one namespace. "base", the model without an adapter, is there from the start."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def register(self, record: VersionRecord) -> VersionRecord:
        """Adds a version; returns it with the adapter id and time that it got.

        Raises:
            InvalidInput: not a name.
            Conflict: the name was used before.
        """
        if not _NAME.fullmatch(record.name):
            raise InvalidInput("name", f"{record.name!r} is not 1 to 128 letters, digits, dots, dashes and underscores")
        kept = VersionRecord()
        kept.CopyFrom(record)
        kept.adapter_id = await self._store.call("INCR", self._store.keys.adapter_ids)
        kept.created_at.CopyFrom(now())
        if record.name == BASE or not await self._add(kept):
            raise Conflict(f"version {record.name!r} exists already; a name is never used again")
        return kept

    async def get(self, name: str) -> VersionRecord:
        """One version.

        Raises:
            NotFound: never registered.
            CorruptRecord: it fails its checksum.
        """
        return (await self._read(name)).new

    async def page(self, size: int, token: str = "", include_training: bool = False) -> tuple[list[VersionRecord], str]:
        """Up to `size` versions, newest first, and the token of the next page ("" at the end).

        Raises:
            InvalidInput: the token is not one of ours.
        """
        if token and not (token.isascii() and token.isdigit()):
            raise InvalidInput("page_token", "is not one that this server gave out")
        await self._read(BASE)
        keys, found, high = self._store.keys, list[VersionRecord](), f"({token}" if token else "+inf"
        while True:
            names = await self._store.call("ZREVRANGEBYSCORE", keys.version_order, high, "-inf", "LIMIT", 0, size + 1)
            for record in await self._records(names):
                high = f"({record.adapter_id}"
                if include_training or record.state != record_pb2.VERSION_STATE_TRAINING:
                    found.append(record)
                if len(found) > size:
                    return found[:size], str(found[size - 1].adapter_id)
            if len(names) <= size:
                return found, ""

    async def live(self) -> VersionRecord:
        """The version that serves everybody; no more than its name, if its record fails its checksum."""
        return (await self._read((await self._pointer()).live, salvage=True)).new

    async def canary(self) -> VersionRecord | None:
        """The version on trial; no more than its name, if its record fails its checksum."""
        name = (await self._pointer()).canary
        return (await self._read(name, salvage=True)).new if name else None

    async def end_trial(self, name: str, reason: str, *, promote: bool) -> tuple[VersionRecord, str]:
        """Makes the canary `name` live, or takes it back; returns the live version and the name of who made way.

        Raises:
            Conflict: `name` is not on trial, or is no more.
        """
        for _ in range(_ATTEMPTS):
            pointer = await self._pointer()
            if pointer.canary != name:
                raise Conflict(f"{name} is not on trial")
            if promote:
                after, changes = await self._release(pointer, await self._read(name), [reason])
                gone = pointer.live
            else:
                after = _Pointer(pointer.names)
                leaving = await self._read(name, salvage=True)
                changes, gone = [_moved(leaving, record_pb2.VERSION_STATE_ROLLED_BACK, [reason])], name
            if await self._write(pointer, after, changes):
                return (await self._read(after.live, salvage=True)).new, gone
        raise StoreUnavailable("the registry changes too fast; try again")

    async def set_state(
        self,
        name: str,
        state: VersionState.ValueType,
        reasons: Iterable[str] = (),
        metrics: Mapping[str, float] | None = None,
    ) -> VersionRecord:
        """Moves a version that is not live to a state other than live; adds to its metrics.

        Raises:
            NotFound: never registered.
            InvalidInput: going live and ceasing to be live are `promote` and `roll_back`.
        """
        why = list(reasons)
        for _ in range(_ATTEMPTS):
            pointer = await self._pointer()
            if state == record_pb2.VERSION_STATE_LIVE or pointer.live == name:
                raise InvalidInput("state", f"{name} goes live or ceases to be live only by promotion and rollback")
            if state == record_pb2.VERSION_STATE_CANARY or pointer.canary == name:
                raise InvalidInput("state", f"{name} goes on trial only by a cycle, and ends it only by `end_trial`")
            change = _moved(await self._read(name), state, why, metrics)
            if await self._write(pointer, pointer, [change]):
                return change.new
        raise StoreUnavailable("the registry changes too fast; try again")

    async def add_metrics(self, name: str, metrics: Mapping[str, float]) -> None:
        """Adds figures to a version, whatever its state.

        Raises:
            NotFound: never registered.
            CorruptRecord: it fails its checksum.
        """
        for _ in range(_ATTEMPTS):
            pointer, kept = await self._pointer(), await self._read(name)
            if await self._write(pointer, pointer, [_moved(kept, kept.new.state, kept.new.reasons, metrics)]):
                return
        raise StoreUnavailable("the registry changes too fast; try again")

    async def promote(self, name: str, reason: str, expected_live: str | None = None) -> tuple[VersionRecord, str]:
        """Makes a version live; returns it and the name of the one before. Already live is a success.

        Raises:
            NotFound: never registered.
            NotReady: it was rejected, or is still training.
            Conflict: another version than `expected_live` is live.
        """
        for _ in range(_ATTEMPTS):
            pointer = await self._pointer()
            target = await self._read(name)
            if pointer.live == name:
                return target.new, pointer.names[1] if len(pointer.names) > 1 else BASE
            _expect(pointer, expected_live)
            after, changes = await self._release(pointer, target, [reason])
            if await self._write(pointer, after, changes):
                return changes[-1].new, pointer.live
        raise StoreUnavailable("the registry changes too fast; try again")

    async def roll_back(self, reason: str, expected_live: str | None = None) -> tuple[VersionRecord, str]:
        """Makes the version live that was live before and was not taken back itself, "base" at the end.

        Returns it and the name of the one that was taken back. While one is on trial, that one is taken back instead
        and the live version stays, unless `expected_live` says that the live one is meant.

        Raises:
            NotReady: the base is live, and there is nothing before it.
            Conflict: another version than `expected_live` is live, or became so while this ran.
        """
        if expected_live is None and (canary := (await self._pointer()).canary):
            return await self.end_trial(canary, reason, promote=False)
        for _ in range(_ATTEMPTS):
            pointer = await self._pointer()
            _expect(pointer, expected_live)
            if pointer.live == BASE:
                raise NotReady("the base model is live: there is nothing to roll back to; promote a version instead")
            expected_live = pointer.live  # a second look must not take back somebody else's version
            after = await self._before(pointer)
            leaving = _moved(
                await self._read(pointer.live, salvage=True), record_pb2.VERSION_STATE_ROLLED_BACK, [reason]
            )
            why = f"{pointer.live} was rolled back: {reason}"
            coming = _moved(await self._read(after.live), record_pb2.VERSION_STATE_LIVE, [why])
            stopped = await self._stopped(pointer, "was rolled back")
            if await self._write(pointer, after, [leaving, *stopped, coming]):
                return coming.new, pointer.live
        raise StoreUnavailable("the registry changes too fast; try again")

    async def changes(self) -> AsyncGenerator[tuple[VersionRecord, str], None]:
        """Each changed version with the name of the live one after the change, without end.

        The live version comes first, and the one on trial next, and again after the connection was lost; a change may
        come twice, none is missed that is not followed by a later state of these two.
        """
        while True:
            try:
                async with self._store.patient(BLOCK_SECONDS) as store:
                    await self._read(BASE)  # in an empty store this adds it, which is no change to tell of
                    newest = await store.call("XREVRANGE", store.keys.changes, "+", "-", "COUNT", 1)
                    last = newest[0][0] if newest else b"0"
                    # Only now, so that no change falls between the two.
                    live = await self.live()
                    yield live, live.name
                    if (pointer := await self._pointer()).canary:
                        yield (await self._read(pointer.canary, salvage=True)).new, pointer.live
                    while True:
                        for name, fields in await _next_changes(store, last):
                            last, record = name, _readable(fields[1])
                            if record is not None:
                                yield record, fields[3].decode()
            except StoreUnavailable as error:
                log.warning("changes_interrupted", extra={"error": str(error)})
            await asyncio.sleep(RETRY_SECONDS)

    async def commit_cycle(self, lease: Lease, cycle: CycleRecord, release: str | None, *, trial: bool = False) -> None:
        """Ends a cycle: lineage, versions' states, live pointer, and acknowledgement of its votes, in one step.

        `release` names the cycle's version if it shall go live, or on trial with `trial`; without it, that version is
        rejected for the cycle's reasons. Once committed, the same cycle commits again without effect.

        Raises:
            LeaseLost: another learner has led since; nothing was changed.
            Conflict: `release` was trained from a version that is no longer live, or shall go on trial while another
                is, or the cycle is not the frozen one;
                nothing was changed. The former can still be committed without `release`.
            NotFound, NotReady: there is no such version, or it cannot go live.
        """
        if release is not None and release != cycle.version:
            raise ValueError(f"cycle {cycle.batch.cycle_id} made {cycle.version!r} and cannot release {release!r}")
        keys, kept = self._store.keys, CycleRecord()
        kept.CopyFrom(cycle)
        kept.finished_at.CopyFrom(now())
        commit: list[Value] = [lease.token, cycle.batch.cycle_id, seal(kept), GROUP, *cycle.batch.event_ids]
        for _ in range(_ATTEMPTS):
            if await self._store.call("SISMEMBER", keys.done, cycle.batch.cycle_id):
                return
            pointer = await self._pointer()
            after, changes = await self._verdict(pointer, cycle, release, trial)
            if await self._write(pointer, after, changes, commit):
                return
        raise StoreUnavailable("the registry changes too fast; try again")

    async def committed(self) -> int:
        """How many cycles were committed."""
        return int(await self._store.call("SCARD", self._store.keys.done))

    async def lineage(self, limit: int) -> list[CycleRecord]:
        """The latest committed cycles, newest first."""
        cycles = []
        for data in await self._store.call("LRANGE", self._store.keys.lineage, 0, limit - 1) if limit > 0 else []:
            try:
                cycles.append(unseal(CycleRecord, data))
            except CorruptRecord as error:
                log.error("corrupt_cycle", extra={"error": str(error)})
        return cycles

    async def _verdict(
        self, pointer: _Pointer, cycle: CycleRecord, release: str | None, trial: bool
    ) -> tuple[_Pointer, list[_Change]]:
        """What a cycle's end changes."""
        if not cycle.version:
            return pointer, []
        target = await self._read(cycle.version)
        target.new.metrics.update(cycle.metrics)
        if pointer.live == cycle.version:  # somebody promoted it by hand meanwhile: that decision stands
            return pointer, [target]
        if release is None:
            return pointer, [_moved(target, record_pb2.VERSION_STATE_REJECTED, cycle.reasons)]
        if pointer.live != cycle.batch.parent:
            raise Conflict(f"{release} was trained from {cycle.batch.parent}, but {pointer.live} is live now")
        if trial:
            if pointer.canary:
                raise Conflict(f"{release} cannot go on trial: {pointer.canary} still is")
            _require_usable(target.new)
            change = _moved(target, record_pb2.VERSION_STATE_CANARY, cycle.reasons)
            return _Pointer(pointer.names, release), [change]
        return await self._release(pointer, target, cycle.reasons)

    async def _release(
        self, pointer: _Pointer, target: _Change, reasons: Sequence[str]
    ) -> tuple[_Pointer, list[_Change]]:
        """The live version makes way for `target`."""
        _require_usable(target.new)
        name = target.new.name
        why = f"made way for {name}: {' '.join(reasons)}"
        leaving = _moved(await self._read(pointer.live, salvage=True), record_pb2.VERSION_STATE_RETIRED, [why])
        coming = _moved(target, record_pb2.VERSION_STATE_LIVE, reasons)
        stopped = await self._stopped(pointer, f"made way for {name}") if pointer.canary != name else []
        return _Pointer((name, *pointer.names[: _HISTORY - 1])), [leaving, *stopped, coming]

    async def _stopped(self, pointer: _Pointer, why: str) -> list[_Change]:
        """What ends the trial, if there is one, of a canary whose control goes."""
        if not pointer.canary:
            return []
        reason = f"its trial ended undecided: {pointer.live} {why}"
        return [_moved(await self._read(pointer.canary, salvage=True), record_pb2.VERSION_STATE_RETIRED, [reason])]

    async def _before(self, pointer: _Pointer) -> _Pointer:
        """The pointer with the live version, and any before it that was taken back, removed."""
        for i, name in enumerate(pointer.names):
            if name == pointer.live:
                continue
            try:
                if (await self.get(name)).state not in _TAKEN_BACK:
                    return _Pointer(pointer.names[i:])
            except CorruptRecord as error:
                log.error("corrupt_version", extra={"version": name, "error": str(error)})
        return _Pointer((BASE,))

    async def _pointer(self) -> _Pointer:
        return _Pointer.parse(await self._store.call("GET", self._store.keys.live))

    async def _read(self, name: str, *, salvage: bool = False) -> _Change:
        """A record, unchanged as yet.

        Args:
            salvage: of one that fails its checksum the name is enough, for the version makes way. So it always is of
                the base, which has no files.
        """
        data = await self._store.call("HGET", self._store.keys.versions, name)
        if data is None and name == BASE:
            live = record_pb2.VERSION_STATE_LIVE
            await self._add(VersionRecord(name=BASE, state=live, created_at=now(), reasons=["the model as it came"]))
            data = await self._store.call("HGET", self._store.keys.versions, name)
        if data is None:
            raise NotFound(f"no version {name!r}")
        try:
            return _Change(data, unseal(VersionRecord, data))
        except CorruptRecord as error:
            if not salvage and name != BASE:
                raise
            log.error("corrupt_version", extra={"version": name, "error": str(error)})
            return _Change(data, VersionRecord(name=name))

    async def _records(self, names: Sequence[bytes]) -> list[VersionRecord]:
        if not names:
            return []
        data = await self._store.call("HMGET", self._store.keys.versions, *names)
        return [record for record in map(_readable, data) if record is not None]

    async def _add(self, record: VersionRecord) -> bool:
        keys = self._store.keys
        touched = [keys.versions, keys.version_order, keys.changes, keys.live]
        args: list[Value] = [record.name, seal(record), record.adapter_id, _CHANGES_KEPT]
        return bool(await self._store.script("register_version", touched, args, durable=True))

    async def _write(
        self, before: _Pointer, after: _Pointer, changes: Sequence[_Change], commit: Sequence[Value] = ()
    ) -> bool:
        """Writes records, pointer and, for a commit, its cycle; false if something changed since it was read."""
        keys = self._store.keys
        touched = [keys.versions, keys.live, keys.changes]
        if commit:
            touched += [keys.fence, keys.manifest, keys.done, keys.lineage, keys.votes]
        args: list[Value] = [before.raw, after.raw, after.live, _CHANGES_KEPT, len(changes)]
        for change in changes:
            args += [change.new.name, change.old, seal(change.new)]
        match (await self._store.script("write_versions", touched, [*args, *commit], durable=True)).decode():
            case "OK":
                return True
            case "FENCED":
                raise LeaseLost(f"lease {commit[0]!r} is no longer the newest: nothing was committed")
            case "NO_MANIFEST":
                raise Conflict(f"cycle {commit[1]!r} is not the one that was frozen")
        return False


def _moved(
    change: _Change, state: VersionState.ValueType, reasons: Iterable[str], metrics: Mapping[str, float] | None = None
) -> _Change:
    record = VersionRecord()
    record.CopyFrom(change.new)
    record.state = state
    record.reasons[:] = list(reasons)
    record.metrics.update(metrics or {})
    return _Change(change.old, record)


def _require_usable(record: VersionRecord) -> None:
    if record.state in _NEVER_LIVE:
        stands = "was rejected" if record.state == record_pb2.VERSION_STATE_REJECTED else "is still training"
        raise NotReady(f"{record.name} {stands} and cannot go live")


def _expect(pointer: _Pointer, live: str | None) -> None:
    if live is not None and pointer.live != live:
        raise Conflict(f"{pointer.live} is live, not {live}")


async def _next_changes(store: Store, last: bytes) -> list[tuple[bytes, list[bytes]]]:
    command = ("XREAD", "BLOCK", int(BLOCK_SECONDS * 1000), "STREAMS", store.keys.changes, last)
    reply = await store.call(*command)
    return [(name, fields) for name, fields in reply[0][1]] if reply else []


def _readable(data: bytes | None) -> VersionRecord | None:
    try:
        return unseal(VersionRecord, data) if data is not None else None
    except CorruptRecord as error:
        log.error("corrupt_version", extra={"error": str(error)})
        return None
