"""What `bench.learning` found: a cell for each taste and seed, a point in it for each exam, and what they come to."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import figures
from bench.figures import Spread

TASTES = ("brief", "impersonal", "unbroken", "addressing", "numeric")
DONE = "done"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done in every cell."""

    votes: int = 100
    """Ratings before each cycle."""
    noise: float = 0.1
    goal: float = 0.8
    cycles: int = 5
    """Within which the goal is to be reached."""
    after: int = 5
    """Cycles from there on."""
    samples: int = 4
    """Answers to each of the exam's prompts."""
    concurrency: int = 24

    @property
    def most(self) -> int:
        """Cycles of a cell that needs all of them."""
        return self.cycles + self.after


@dataclass(frozen=True, slots=True)
class Point:
    """What an exam found after so many cycles; the first is that of the base."""

    cycle: int
    ratings: int
    minutes: float
    """Of rating and learning so far."""
    outcome: str
    """How the cycle ended."""
    version: str
    up_rate: float
    competence: float
    kl: float
    """Of the live version to the base, nats per answer, by its gate."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One taste with one seed, over."""

    taste: str
    seed: int
    settings: str
    """Digest of what cells must have in common to stand beside each other."""
    commit: str
    finished_at: str
    machine: dict[str, Any]
    points: tuple[Point, ...]
    ended: str
    """DONE, or what cut it short."""

    @classmethod
    def load(cls, page: dict[str, Any]) -> Cell:
        return cls(**page | {"points": tuple(Point(**point) for point in page["points"])})

    @property
    def done(self) -> bool:
        return self.ended == DONE


def reached(points: Sequence[Point], plan: Plan) -> Point | None:
    """Where the goal was reached first; None if it was not within the cycles that there are for it."""
    return next((point for point in points[: plan.cycles + 1] if point.up_rate >= plan.goal), None)


def there(points: Sequence[Point], plan: Plan) -> Point:
    """Where the goal was reached, or else the best within those cycles."""
    return reached(points, plan) or max(points[: plan.cycles + 1], key=lambda point: point.up_rate)


def goes_on(points: Sequence[Point], plan: Plan) -> bool:
    """Whether another cycle is to come."""
    first = reached(points, plan)
    return points[-1].cycle < (plan.cycles if first is None else first.cycle) + plan.after


def missing(
    wanted: Iterable[tuple[str, int]], cells: Collection[Cell], settings: str, *, again: bool = False
) -> list[tuple[str, int]]:
    """Those that are to be run, in the order in which they are wanted.

    Args:
        again: those that were cut short, too.
    """
    known = {(cell.taste, cell.seed) for cell in cells if cell.settings == settings and (cell.done or not again)}
    return [each for each in wanted if each not in known]


def read(file: Path | None) -> list[Cell]:
    """The cells of former runs."""
    if file is None or not file.exists():
        return []
    return [Cell.load(page) for page in json.loads(file.read_text(encoding="utf-8"))["results"]["cells"]]


def with_cell(cells: Iterable[Cell], new: Cell) -> list[Cell]:
    """The new one in the place of what there was of its taste and seed, the rest as it is; in a fixed order."""
    kept = [cell for cell in cells if (cell.taste, cell.seed) != (new.taste, new.seed)]
    known = list(dict.fromkeys((*TASTES, *(cell.taste for cell in kept), new.taste)))
    return sorted([*kept, new], key=lambda cell: (known.index(cell.taste), cell.seed))


def write(file: Path | None, cells: Sequence[Cell], plan: Plan, settings: str, quick: bool) -> None:
    """All cells, and what those under these settings come to."""
    alike = [cell for cell in cells if cell.settings == settings]
    results = {
        "plan": asdict(plan),
        "settings": settings,
        "tastes": summary(alike, plan),
        "targets": [found for target in TARGETS if (found := target.of(alike))],
        "cells": [asdict(cell) for cell in cells],
    }
    figures.write(file, "learning", quick, results)


def summary(cells: Iterable[Cell], plan: Plan) -> dict[str, Any]:
    """Of each taste what its cells found, over the seeds. A cell without a point is a run that shows nothing."""
    by_taste: dict[str, list[Cell]] = {}
    for cell in cells:
        by_taste.setdefault(cell.taste, []).append(cell)
    found: dict[str, Any] = {}
    for taste, group in by_taste.items():
        measured = [cell.points for cell in group if cell.points]
        found[taste] = {
            "runs": len(group),
            "cut_short": sum(not cell.done for cell in group),
            "reached": sum(reached(points, plan) is not None for points in measured),
            "before": _spread([points[0].up_rate for points in measured]),
            "there": _at([(points[0], there(points, plan)) for points in measured]),
            "at_last": _at([(points[0], points[-1]) for points in measured]),
        }
    return found


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked of a taste. Limits that are infinite ask for nothing."""

    taste: str
    up_rate: float
    ratings: int
    minutes: float = math.inf
    kl: float = math.inf
    competence_change: float = -math.inf

    def of(self, cells: Iterable[Cell]) -> dict[str, Any] | None:
        """What was found with so many ratings, and whether its medians are as asked; None if nothing was measured."""
        mine = [cell.points for cell in cells if cell.taste == self.taste and len(cell.points) > 1]
        if not mine:
            return None
        found = _at([(points[0], [p for p in points if p.ratings <= self.ratings][-1]) for points in mine])
        medians = {name: spread.median for name, spread in found.items() if spread is not None}
        met = (
            medians["up_rate"] >= self.up_rate
            and medians["minutes"] <= self.minutes
            and medians["kl"] <= self.kl
            and medians["competence_change"] >= self.competence_change
        )
        asked = {name: value for name, value in asdict(self).items() if not (name != "taste" and math.isinf(value))}
        return {"target": asked, "met": met} | found


TARGETS = (
    Target("brief", 0.8, 100, minutes=5, kl=5, competence_change=0),
    Target("addressing", 0.6, 300),
    Target("numeric", 0.6, 300),
)


def _at(pairs: Sequence[tuple[Point, Point]]) -> dict[str, Spread | None]:
    """What was found at the second point of each pair; competence is held against the first."""
    return {
        "up_rate": _spread([point.up_rate for _, point in pairs]),
        "ratings": _spread([point.ratings for _, point in pairs]),
        "minutes": _spread([point.minutes for _, point in pairs]),
        "kl": _spread([point.kl for _, point in pairs]),
        "competence_change": _spread([point.competence - base.competence for base, point in pairs]),
    }


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread.of(values) if values else None
