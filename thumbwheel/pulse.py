"""The learner's sign of life: what it is doing, for whoever looks at the store.

The leader repeats it every few seconds; it lapses by itself, so what is found is true or was a moment ago.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from thumbwheel.store import Store

BEAT_SECONDS: Final = 2.0
LAPSE_MS: Final = 15_000


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the learner is doing.

    Attributes:
        stage: one of `learner.metrics.STAGES`.
        progress: how far the stage has come, 0 to 1.
        since: when the stage began, Unix seconds.
        min_votes: new votes that start a cycle.
    """

    stage: str
    progress: float
    since: float
    min_votes: int


async def beat(store: Store, pulse: Pulse) -> None:
    """
    Raises:
        StoreUnavailable: it was not told.
    """
    await store.call("SET", store.keys.pulse, json.dumps(asdict(pulse)), "PX", LAPSE_MS)


async def felt(store: Store) -> Pulse | None:
    """The latest sign of life; None if no learner leads, or it tells something that this version cannot read.

    Raises:
        StoreUnavailable: it cannot be asked.
    """
    told = await store.call("GET", store.keys.pulse)
    if told is None:
        return None
    try:
        return Pulse(**json.loads(told))
    except (ValueError, TypeError):
        return None
