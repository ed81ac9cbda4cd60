"""An index of turns by time: a sorted set of turn ids, scored in milliseconds."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from thumbwheel.errors import InvalidInput
from thumbwheel.store import Store


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a turn stands in an index; later places are greater."""

    millis: int
    turn_id: str

    def token(self) -> str:
        """For a caller to come back with."""
        return f"{self.millis}.{self.turn_id}"

    @classmethod
    def of_token(cls, token: str) -> Place:
        millis, dot, turn_id = token.partition(".")
        if not dot or not turn_id or not millis.isascii() or not millis.isdigit():
            raise InvalidInput("page_token", "is not one that this server gave out")
        return cls(int(millis), turn_id)


async def newest_first(
    store: Store, key: str, before: Place | None = None, batch: int = 200
) -> AsyncGenerator[Place, None]:
    """Walks an index in constant memory, from the turn before `before` (or the newest) to the oldest.

    Turns that enter or leave the index meanwhile may or may not be seen.
    """
    last = before
    while True:
        high = "+inf" if last is None else last.millis
        reply = await store.call("ZREVRANGEBYSCORE", key, high, "-inf", "WITHSCORES", "LIMIT", 0, batch)
        places = [Place(int(float(score)), name.decode()) for name, score in zip(reply[::2], reply[1::2], strict=True)]
        fresh = [place for place in places if last is None or place < last]
        for place in fresh:
            yield place
        if len(places) < batch:
            return
        if fresh:
            last = fresh[-1]
        else:
            batch *= 2  # more turns share this millisecond than one batch holds
