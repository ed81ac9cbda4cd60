"""``/v1/wheel`` and the moves of operators: the whole at a glance, and who goes live, over HTTP."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from server import http_json
from server.http_boundary import Call
from server.http_json import Sent
from server.releases import Releases
from thumbwheel import pulse, vote_tally
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.freeze import Brake
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.vote_stream import VoteStream
from thumbwheel.vote_tally import Said
from thumbwheel_client.v1.record_pb2 import CycleRecord, VersionRecord, VersionState

FRESH_SECONDS: Final = 1.0
"""For which all who look see the same: a page that is open in many windows costs no more than one."""
TURNS: Final = 2000
"""The newest rated turns, whose votes are counted."""
VERSIONS: Final = 50
CYCLES: Final = 10
FIGURES: Final = ("reward_model_auc", "kl_nats_per_sequence", "win_rate", "competence", "seconds", "votes")


class Move(Sent):
    """The body of a promotion or rollback."""

    reason: str = ""


class HttpWheel:
    """For operators."""

    def __init__(self, store: Store, registry: Registry, releases: Releases, feedback: FeedbackLog) -> None:
        self._store = store
        self._registry = registry
        self._releases = releases
        self._feedback = feedback
        self._looking = asyncio.Lock()
        self._seen: tuple[float, dict[str, Any]] = (-math.inf, {})

    async def show(self, call: Call) -> ASGIApp:
        """Versions, votes, the learner and its latest cycles."""
        async with self._looking:
            when, seen = self._seen
            if time.monotonic() - when > FRESH_SECONDS:
                seen = await self._look()
                self._seen = (time.monotonic(), seen)
        return JSONResponse(seen, headers={"cache-control": "no-store"})

    async def promote(self, call: Call) -> ASGIApp:
        """Makes the version of the path live."""
        # A body must be sent, and as JSON: without asking, a page of another site can send only what is neither.
        move = http_json.checked(Move, http_json.read(call.body))
        live, previous = await self._releases.promote(call.path["model"], move.reason)
        return self._moved(live, previous)

    async def roll_back(self, call: Call) -> ASGIApp:
        """Takes the version of the path back, if it is live or on trial still."""
        move = http_json.checked(Move, http_json.read(call.body))
        live, previous = await self._releases.take_back(move.reason, call.path["model"])
        return self._moved(live, previous)

    def _moved(self, live: VersionRecord, previous: str) -> JSONResponse:
        self._seen = (-math.inf, {})
        return JSONResponse({"live": live.name, "previous": previous})

    async def _look(self) -> dict[str, Any]:
        now = time.time()
        said, complete = await vote_tally.latest(self._store, self._feedback, TURNS)
        seconds, buckets = vote_tally.bucketed(said, now)
        canary = await self._registry.canary()
        records, _ = await self._registry.page(VERSIONS)
        learner, frozen = await pulse.felt(self._store), await Brake(self._store).frozen()
        counts = _counts(said)
        return {
            "now": now,
            "live": (await self._registry.live()).name,
            "canary": canary.name if canary else "",
            "versions": [_version(record) | counts[record.name] for record in records],
            "votes": {
                "seconds": seconds,
                "buckets": [asdict(bucket) for bucket in buckets],
                "complete": complete,
                "waiting": await VoteStream(self._store).waiting(),
            },
            "learner": asdict(learner) if learner else None,
            "frozen": [{"wire": each.wire, "words": each.words} for each in frozen.tripped] if frozen else [],
            "cycles": [_cycle(record) for record in await self._registry.lineage(CYCLES)],
        }


def _counts(said: Iterable[Said]) -> Mapping[str, dict[str, int]]:
    """Of each version, the votes that call an answer good, and all that say whether it was."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"good": 0, "judged": 0})
    for one in said:
        if one.good is not None:
            counts[one.version]["good"] += one.good
            counts[one.version]["judged"] += 1
    return counts


def _version(record: VersionRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "state": VersionState.Name(record.state).removeprefix("VERSION_STATE_").lower(),
        "parent": record.parent,
        "created": record.created_at.seconds,
        "reasons": list(record.reasons),
        "figures": _figures(record.metrics),
    }


def _cycle(record: CycleRecord) -> dict[str, Any]:
    return {
        "cycle": record.batch.cycle_id,
        "outcome": record.outcome,
        "version": record.version,
        "parent": record.batch.parent,
        "votes": len(record.batch.event_ids),
        "finished": record.finished_at.seconds,
        "reasons": list(record.reasons),
        "figures": _figures(record.metrics),
    }


def _figures(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that are shown; JSON has no NaN."""
    return {name: metrics[name] for name in FIGURES if name in metrics and math.isfinite(metrics[name])}
