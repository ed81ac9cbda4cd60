"""The turn log: what was asked and answered, kept until it has trained or grown old.

Chat never waits for it longer than a moment: with the store away, answers wait in a bounded buffer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from thumbwheel import config
from thumbwheel.errors import CorruptRecord, NotFound, StoreUnavailable
from thumbwheel.records import MAX_ANSWERS, seal, unseal
from thumbwheel.store import ANSWER_SECONDS, ScriptCall, Store, Value
from thumbwheel.time_index import Place, newest_first
from thumbwheel.vote_stream import StreamId, lowest_untrained
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1.record_pb2 import ResponseRecord, TurnRecord

log = logging.getLogger("thumbwheel.turn_log")

RETRY_SECONDS: Final = 0.25
"""How often the buffer is tried while the store is away."""
TRIM_SECONDS: Final = 60.0
"""How often old turns are dropped."""
VERSION_TURNS: Final = 20_000
"""Latest turns of one version that can be found by its name."""
_BATCH: Final = 100
_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class Turn:
    """A request and its answers by index; an answer that is still being sampled is not there yet."""

    record: TurnRecord
    responses: dict[int, ResponseRecord]


class TurnLog:
    """Turns of one namespace. Needs `run` beside it to empty the buffer and drop old turns.

    `pending` answers wait in the buffer; `lost` could not be kept; `corrupt` turns failed their checksum.
    """

    def __init__(self, store: Store, settings: config.TurnLog) -> None:
        self.lost = 0
        self.corrupt = 0
        self._store = store
        self._settings = settings
        self._buffer: deque[tuple[TurnRecord, ResponseRecord]] = deque()
        self._emptied = asyncio.Event()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    async def append(self, turn: TurnRecord, response: ResponseRecord) -> chat_pb2.LogStatus.ValueType:
        """Keeps one answer. Never raises for an absent store, and never waits longer than ANSWER_SECONDS for it."""
        if not self._buffer:
            try:
                kept = await self._write(turn, response)
            except StoreUnavailable as error:
                log.warning("store_away", extra={"error": str(error)})
            else:
                return chat_pb2.LOG_STATUS_LOGGED if kept else chat_pb2.LOG_STATUS_NOT_LOGGED
        # While something waits, the store is known to be away: only the first answer finds out by waiting for it.
        if len(self._buffer) >= self._settings.buffer:
            self.lost += 1
            return chat_pb2.LOG_STATUS_NOT_LOGGED
        self._buffer.append((turn, response))
        self._emptied.clear()
        return chat_pb2.LOG_STATUS_PENDING

    async def flush(self) -> bool:
        """Tries to write what waits; True if nothing is left."""
        while self._buffer:
            turn, response = self._buffer[0]
            try:
                await self._write(turn, response)
            except StoreUnavailable:
                return False
            self._buffer.popleft()
        self._emptied.set()
        return True

    async def written(self, turn_id: str) -> bool:
        """Waits until no answer of this turn waits in the buffer; False if none did."""
        if all(turn.turn_id != turn_id for turn, _ in self._buffer):
            return False
        await self._emptied.wait()
        return True

    async def run(self) -> None:
        """Until cancelled: writes what waits when the store is back, and drops old turns."""
        trim_at = time.monotonic()
        while True:
            waiting = self.pending
            if waiting and await self.flush():
                log.info("store_back", extra={"answers": waiting})
            if time.monotonic() >= trim_at:
                trim_at = time.monotonic() + TRIM_SECONDS
                try:
                    await self.trim()
                except StoreUnavailable as error:
                    log.warning("trim_postponed", extra={"error": str(error)})
            await asyncio.sleep(RETRY_SECONDS)

    async def get(self, turn_id: str) -> Turn:
        """One turn.

        Raises:
            NotFound: never logged, or grown old.
            CorruptRecord: it fails its checksum.
        """
        turn = _turn(await self._store.call("HGETALL", self._store.keys.turn(turn_id)))
        if turn is None:
            raise NotFound(f"no turn {turn_id!r}")
        return turn

    async def get_many(self, turn_ids: Sequence[str]) -> list[Turn | None]:
        """Turns in one round trip; None where one is gone or corrupt."""
        replies = await self._store.batch([("HGETALL", self._store.keys.turn(name)) for name in turn_ids])
        turns: list[Turn | None] = []
        for name, reply in zip(turn_ids, replies, strict=True):
            try:
                turns.append(_turn(reply))
            except CorruptRecord as error:
                self.corrupt += 1
                log.error("corrupt_turn", extra={"turn_id": name, "error": str(error)})
                turns.append(None)
        return turns

    async def kept(self, turn_ids: Iterable[str]) -> set[str]:
        """Which of these turns are still there: neither erased nor grown old."""
        names = sorted(turn_ids)
        found: set[str] = set()
        for start in range(0, len(names), _BATCH):
            part = names[start : start + _BATCH]
            there = await self._store.batch([("EXISTS", self._store.keys.turn(name)) for name in part])
            found |= {name for name, is_there in zip(part, there, strict=True) if is_there}
        return found

    async def recent(self, limit: int, version: str | None = None) -> AsyncGenerator[Turn, None]:
        """Up to `limit` turns, newest first, rated or not; only those with an answer of `version`, if given."""
        if limit <= 0:
            return
        keys = self._store.keys
        indexes = [keys.answers(version)] if version is not None else [keys.turns, keys.rated]
        names: list[str] = []
        async with aclosing(_merged(self._store, indexes)) as places:
            async for place in places:
                names.append(place.turn_id)
                if len(names) >= min(limit, _BATCH):
                    for turn in await self._present(names):
                        yield turn
                        limit -= 1
                    names = []
                    if limit <= 0:
                        return
        for turn in (await self._present(names))[:limit]:
            yield turn

    async def bring(self, turns: Sequence[tuple[TurnRecord, Sequence[ResponseRecord], int]]) -> list[bool]:
        """Keeps turns from elsewhere, as if they had come now; what is kept of one already stays as it is.

        Args:
            turns: each with its answers, and when its owner asked (ms).

        Returns:
            Of each, False if its owner was erased since they asked: nothing of it is kept.

        Raises:
            StoreUnavailable: some may not have been kept: try again.
        """
        keys, millis = self._store.keys, int(time.time() * 1000)
        calls: list[ScriptCall] = []
        for turn, responses, asked in turns:
            touched = [keys.turn(turn.turn_id), keys.turns, keys.owned_by(turn.owner), keys.erased]
            args: list[Value] = [turn.turn_id, millis, asked, turn.owner, seal(turn)]
            for response in responses:
                args += [response.index, seal(response)]
            calls.append((touched, args))
        replies = await self._store.scripts("import_turn", calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return [bool(reply) for reply in replies]

    async def trim(self) -> int:
        """Drops turns that are too old or too many; returns how many.

        A turn whose votes have not trained yet stays, unless there are more than `max_rated_turns`.
        """
        keys = self._store.keys
        cutoff = int(time.time() * 1000 - self._settings.max_age_days * _DAY_MS)
        trained_below = await lowest_untrained(self._store)
        dropped = await self._drop_excess(keys.turns, self._settings.max_turns)
        dropped += await self._drop_excess(keys.rated, self._settings.max_rated_turns)
        dropped += await self._drop_old(keys.turns, cutoff, None)
        dropped += await self._drop_old(keys.rated, cutoff, trained_below)
        if dropped:
            log.info("turns_dropped", extra={"turns": dropped})
        return dropped

    async def _write(self, turn: TurnRecord, response: ResponseRecord) -> bool:
        """False: whoever asked has been erased since."""
        if not 0 <= response.index < MAX_ANSWERS:
            raise ValueError(f"answer index {response.index} is not 0 to {MAX_ANSWERS - 1}")
        keys = self._store.keys
        versions = {span.version for span in response.spans}
        args: list[Value] = [
            turn.turn_id,
            turn.created_at.ToMilliseconds(),
            turn.owner,
            seal(turn),
            response.index,
            seal(response),
            VERSION_TURNS,
            int(self._settings.max_age_days * _DAY_MS),
            response.spans[0].version if response.spans else "",
        ]
        names = [
            keys.turn(turn.turn_id), keys.turns, keys.rated, keys.owned_by(turn.owner), keys.erased,
            *(keys.answers(name) for name in sorted(versions)),
        ]  # fmt: skip
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return bool(await self._store.script("append_turn", names, args))
        except TimeoutError as error:
            raise StoreUnavailable("the store did not answer in time") from error

    async def _present(self, names: Sequence[str]) -> list[Turn]:
        return [turn for turn in await self.get_many(names) if turn is not None]

    async def _drop_excess(self, index: str, most: int) -> int:
        dropped = 0
        while (excess := await self._store.call("ZCARD", index) - most) > 0:
            names = await self._store.call("ZRANGE", index, 0, min(excess, _BATCH) - 1)
            dropped += (now := await self._drop(index, [name.decode() for name in names], None))
            if not now:
                break
        return dropped

    async def _drop_old(self, index: str, cutoff: int, trained_below: StreamId | None) -> int:
        dropped = skipped = 0
        while True:
            command = ("ZRANGEBYSCORE", index, "-inf", cutoff, "LIMIT", skipped, _BATCH)
            names = [name.decode() for name in await self._store.call(*command)]
            now = await self._drop(index, names, trained_below)
            dropped += now
            skipped += len(names) - now
            if len(names) < _BATCH:
                return dropped

    async def _drop(self, index: str, names: Iterable[str], trained_below: StreamId | None) -> int:
        """Drops these turns except those with a vote at or after `trained_below`; returns how many went."""
        keys, dropped = self._store.keys, 0
        names = list(names)
        facts = await self._store.batch([("HMGET", keys.turn(name), "owner", "last") for name in names])
        for name, (owner, last) in zip(names, facts, strict=True):
            if trained_below is not None and last is not None and StreamId.parse(last) >= trained_below:
                continue
            person = (owner or b"").decode()
            touched = [index, keys.turn(name), keys.current(name), keys.rated_by(person), keys.owned_by(person)]
            dropped += await self._store.script("drop_turn", touched, [name, last or b""])
        return dropped


async def _merged(store: Store, indexes: Sequence[str]) -> AsyncGenerator[Place, None]:
    """Several indexes as one, newest first. A turn that moves between them meanwhile comes once or not at all."""
    walks = [newest_first(store, key) for key in indexes]
    heads = [await anext(walk, None) for walk in walks]
    previous = None
    while any(heads):
        at, place = max(((i, head) for i, head in enumerate(heads) if head), key=lambda pair: pair[1])
        if place != previous:
            yield place
        previous = place
        heads[at] = await anext(walks[at], None)


def _turn(reply: Sequence[bytes]) -> Turn | None:
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    if b"t" not in fields:
        return None
    answers = {i: fields.get(f"r{i}".encode()) for i in range(MAX_ANSWERS)}
    return Turn(
        unseal(TurnRecord, fields[b"t"]),
        {i: unseal(ResponseRecord, data) for i, data in answers.items() if data is not None},
    )
