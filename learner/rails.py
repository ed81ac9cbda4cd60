"""Guard-rails of a trial: what no vote has to say. Pure: one row of figures per person in, alarms out.

Looked at once at each of `LOOKS` people an arm, two-sided at `Z` standard errors: 3 looks at 4 rails have false alarms
in 0.6 % of trials together (4 * 3 * 2 * (1 - Phi(3.5))). And a difference that is no chance must be large too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thumbwheel_client.v1 import record_pb2 as pb

LOOKS = (100, 200, 400)
Z = 3.5
REFUSALS = ("i'm sorry, but", "i cannot", "i can't", "i am unable", "i'm unable", "as an ai")


@dataclass(frozen=True, slots=True)
class Rail:
    name: str
    tolerance: float
    """Difference of means that is borne."""
    upwards: bool
    """Only more of it is bad."""


RAILS = (
    Rail("length (log tokens)", math.log(1.5), False),
    Rail("seconds a token (log)", math.log(1.5), True),
    Rail("answers that broke off", 0.1, True),
    Rail("refusals", 0.1, True),
)


def figures(turn: pb.TurnRecord, response: pb.ResponseRecord) -> tuple[float, ...]:
    """One answer's, in the order of `RAILS`."""
    tokens = max(len(response.token_ids), 1)
    seconds = (response.finished_at.ToMilliseconds() - turn.created_at.ToMilliseconds()) / 1000
    opening = response.text[:200].lower().replace("’", "'")
    return (
        math.log(tokens),
        math.log(max(seconds, 1e-3) / tokens),
        float(response.finish_reason != pb.FINISH_REASON_STOP),
        float(any(phrase in opening for phrase in REFUSALS)),
    )


def alarms(new: NDArray[np.float64], old: NDArray[np.float64]) -> list[str]:
    """
    Args:
        new, old: (people, len(RAILS)), of persons that are independent of each other.
    """
    change = new.mean(0) - old.mean(0)
    error = np.sqrt(new.var(0, ddof=1) / len(new) + old.var(0, ddof=1) / len(old))
    found = []
    for rail, moved, spread in zip(RAILS, change.tolist(), error.tolist(), strict=True):
        size = moved if rail.upwards else abs(moved)
        if size > rail.tolerance and size > Z * spread:
            found.append(f"{rail.name} {moved:+.2f}")
    return found
