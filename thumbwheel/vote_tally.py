"""What people have said lately, by version and by time: for a look at the whole, not for learning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.opinion import verdict
from thumbwheel.records import MAX_ANSWERS, split_response_id
from thumbwheel.store import Store
from thumbwheel.time_index import newest_first
from thumbwheel_client.v1.record_pb2 import VOTE_KIND_RANKING, VoteEvent

MOST_BUCKETS: Final = 40
WIDTHS: Final = (60, 300, 900, 3600, 6 * 3600, 86_400, 7 * 86_400, 28 * 86_400)
"""Seconds that a bucket may span; a width divides those after it, so that buckets begin at round times."""
_BATCH: Final = 200
_VERSIONS: Final = tuple(f"v{index}" for index in range(MAX_ANSWERS))


@dataclass(frozen=True, slots=True)
class Said:
    """A current vote: when it was cast (Unix seconds), the version of the answer ("" if unknown), and whether it calls
    the answer good; None where it does not say."""

    when: float
    version: str
    good: bool | None


@dataclass(frozen=True, slots=True)
class Bucket:
    """Votes on one version in one span of time, which starts at `start` (Unix seconds)."""

    start: int
    version: str
    good: int
    bad: int
    other: int


async def latest(store: Store, feedback: FeedbackLog, most_turns: int) -> tuple[list[Said], bool]:
    """The current votes on the newest rated turns, and whether these are all that there are.

    Raises:
        StoreUnavailable: the store cannot be asked.
    """
    names: list[str] = []
    async with aclosing(newest_first(store, store.keys.rated)) as walk:
        async for place in walk:
            names.append(place.turn_id)
            if len(names) > most_turns:
                break
    found: list[Said] = []
    for start in range(0, min(len(names), most_turns), _BATCH):
        part = names[start : min(start + _BATCH, most_turns)]
        commands = [("HMGET", store.keys.turn(name), *_VERSIONS) for name in part]
        versions = dict(zip(part, await store.batch(commands), strict=True))
        for name, votes in (await feedback.current(part)).items():
            found += [_said(event, versions[name]) for _, event in votes if not event.imported]
    return found, len(names) <= most_turns


def bucketed(said: Sequence[Said], now: float) -> tuple[int, list[Bucket]]:
    """Votes counted by time and version, oldest first, and how many seconds a bucket spans."""
    oldest = min((one.when for one in said), default=now)
    width = next((each for each in WIDTHS if (now - oldest) / each < MOST_BUCKETS - 1), WIDTHS[-1])
    counts: dict[tuple[int, str], list[int]] = {}
    for one in said:
        place = (int(one.when // width) * width, one.version)
        column = 2 if one.good is None else 0 if one.good else 1
        counts.setdefault(place, [0, 0, 0])[column] += 1
    return width, [Bucket(start, version, *counts[start, version]) for start, version in sorted(counts)]


def _said(event: VoteEvent, versions: Sequence[bytes | None]) -> Said:
    # A ranking is about answers of one turn, which one version gives.
    index = 0 if event.kind == VOTE_KIND_RANKING else split_response_id(event.response_id)[1]
    return Said(event.created_at.ToMilliseconds() / 1000, (versions[index] or b"").decode(), verdict(event))
