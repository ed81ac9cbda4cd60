"""How many ratings and minutes it takes until a taste is met on prompts that nobody rates, and whether it stays met.

For each of five tastes and three seeds a thumbwheel of its own, as `thumbwheel demo` starts it: an exam; then raters of
whom one in ten errs rate some answers, the learner runs a cycle, the server swaps, and the same exam comes again. So
until the taste likes four of five answers, or for five cycles, and from there on for five more: does it hold, or drift?

    there    where the goal was reached, or else the best of the first cycles
    at last  the cycles after that later

`addressing` and `numeric` are about what is said; nothing in the learner was tuned on them. Minutes are those of rating
and learning, without the exams. KL is the gate's, in nats per answer.

    python -m bench.learning                          all cells, one after the other: about an hour each on two cores
    python -m bench.learning --taste brief --seed 1   this one alone
    python -m bench.learning --cells 2                no more than so many now

A cell is written as soon as it is over, and one that is there under the same settings is not run again. What broke off
is a result too: it stays in the figures, with what it had reached, until --again has it run anew.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import figures, tiny_model
from bench.figures import Spread
from bench.learning_cells import (
    DONE,
    TARGETS,
    TASTES,
    Cell,
    Plan,
    Point,
    goes_on,
    missing,
    read,
    summary,
    with_cell,
    write,
)
from cli import fresh, tastes
from cli.demo_view import View
from cli.rounds import Crowd, Rounds, fresh_options
from thumbwheel import config
from thumbwheel.errors import SetupError

RESULTS = Path(__file__).with_name("results") / "learning.json"
SEEDS = (1, 2, 3)
MINUTES = 120.0
"""After which a cell begins no more cycles."""
OUT_OF_TIME = "out of time"
QUICK_PLAN = Plan(votes=48, goal=1.1, cycles=1, after=0, samples=1)
"""A goal that nothing reaches, so that there is a cycle."""
QUICK_TASTE = "unbroken"
"""A random model's answers differ in that; hardly any is brief."""
QUICK = (
    "learner.reward_model.min_auc=0", "learner.gate.min_win_rate=0", "learner.gate.win_rate_margin=1",
    "learner.gate.min_length_ratio=0", "learner.gate.max_length_ratio=1000", "learner.gate.min_judge_votes=1",
    "learner.gate.max_kl=1000", "learner.gate.prompts=4", "learner.ppo.fresh_iterations=1", "learner.ppo.rollouts=16",
    "learner.ppo.kl_budget=1000", "learner.poll=0.2", "server.max_update_norm=1000", "server.kv_cache_bytes=67108864",
)  # fmt: skip
"""Lets a random model through everything that is there to stop one."""

Runner = Callable[[str, int], tuple[list[Point], str]]
"""Runs a taste with a seed: its points and how it ended."""


def run(
    wanted: Sequence[tuple[str, int]], file: Path | None, plan: Plan, settings: str, quick: bool, runner: Runner
) -> list[Cell]:
    """Runs these cells and writes each as soon as it is over. Returns all that are then there."""
    cells = read(file)
    for taste, seed in wanted:
        commit = figures.commit()
        points, ended = runner(taste, seed)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        cell = Cell(taste, seed, settings, commit, finished, figures.machine(), tuple(points), ended)
        # Read again: somebody may have run other cells meanwhile.
        cells = with_cell(read(file) if file else cells, cell)
        write(file, cells, plan, settings, quick)
    return cells


def in_its_own_process(
    taste: str, seed: int, *, plan: Plan, overrides: Sequence[str], minutes: float, data_dir: Path | None
) -> tuple[list[Point], str]:
    """One cell. What it starts is forked, which a process must not do that has gRPC's threads of the cell before."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(run_cell, taste, seed, plan, overrides, minutes, data_dir).result()
        except BrokenProcessPool:
            return [], "its process was killed"


def run_cell(
    taste: str, seed: int, plan: Plan, overrides: Sequence[str], minutes: float, data_dir: Path | None
) -> tuple[list[Point], str]:
    """Its points, and how it ended."""
    console = Console(highlight=False)
    console.print(f"{taste}, seed {seed}")
    points: list[Point] = []
    try:
        with fresh.empty_folder(data_dir and data_dir / f"{taste}-{seed}-{time.time():.0f}") as folder:
            options = fresh_options(plan.votes, seed, console, overrides=overrides)
            return points, asyncio.run(_rounds(taste, seed, plan, folder, options, minutes, points, console))
    except Exception as error:  # noqa: BLE001 - the loop's boundary: whatever ended a cell is its result; others wait
        console.print_exception()
        # The first line only: after it may follow a log, with paths of this machine.
        return points, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


async def _rounds(
    taste: str, seed: int, plan: Plan, folder: Path, options: Sequence[str], minutes: float, points: list[Point],
    console: Console,
) -> str:  # fmt: skip
    """Fills `points`. How it ended."""
    crowd = Crowd(tastes.find(taste), plan.noise, seed, plan.concurrency, plan.samples)
    view, began, worked = View(console), time.monotonic(), 0.0
    async with view.shown(), Rounds.begin(folder, options, crowd, plan.votes * plan.most, view) as rounds:
        points.append(await _measured(rounds, 0, 0.0, ""))
        while goes_on(points, plan):
            round_began = time.monotonic()
            if round_began - began > 60 * minutes:
                return OUT_OF_TIME
            outcomes = await rounds.turn(plan.votes)
            worked += time.monotonic() - round_began
            points.append(await _measured(rounds, len(points), worked / 60, " and ".join(outcomes)))
    return DONE


async def _measured(rounds: Rounds, cycle: int, minutes: float, outcome: str) -> Point:
    marks = await rounds.examine(f"measuring after cycle {cycle}" if cycle else "measuring before")
    live = await rounds.live()
    return Point(
        cycle=cycle,
        ratings=rounds.raters.tally.ratings,
        minutes=minutes,
        outcome=outcome,
        version=marks.version,
        up_rate=marks.up_rate,
        competence=marks.competence,
        kl=live.metrics.get("kl_nats_per_sequence", 0.0),
    )


def digest(plan: Plan, overrides: Sequence[str]) -> str:
    """Of the plan and of all that the learner is set to, its seed aside."""
    settings = config.load(None, overrides)
    page = {
        "plan": asdict(plan),
        "learner": settings.learner.model_dump(mode="json"),
        "release": settings.release.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(page, sort_keys=True).encode()).hexdigest()[:12]


def tables(cells: Sequence[Cell], plan: Plan) -> tuple[Table, Table]:
    """The tastes, and the targets: median (lowest to highest) over the runs."""
    by_taste = _table(
        "taste", "runs", "reached", "before", "there", "ratings", "minutes", "KL", "competence", "at last", "KL",
        "competence",
    )  # fmt: skip
    for taste, found in summary(cells, plan).items():
        at, last = found["there"], found["at_last"]
        cut = f", {found['cut_short']} cut short" if found["cut_short"] else ""
        by_taste.add_row(
            taste, f"{found['runs']}{cut}", str(found["reached"]), _words(found["before"]), _words(at["up_rate"]),
            _words(at["ratings"]), _words(at["minutes"]), _words(at["kl"]), _words(at["competence_change"]),
            _words(last["up_rate"]), _words(last["kl"]), _words(last["competence_change"]),
        )  # fmt: skip
    targets = _table("target", "up-rate", "minutes", "KL", "competence", "")
    for target in TARGETS:
        at = target.of(cells) or {}
        verdict = ("met" if at["met"] else "not met") if at else "not measured"
        shown = (_words(at.get(name)) for name in ("up_rate", "minutes", "kl", "competence_change"))
        targets.add_row(f"{target.taste}: {target.up_rate:g} with {target.ratings} ratings", *shown, verdict)
    return by_taste, targets


def _table(*headings: str) -> Table:
    table = Table(header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table


def _words(spread: Spread | None) -> str:
    return "" if spread is None else f"{spread.median:.3g} ({spread.low:.3g} to {spread.high:.3g})"


def _asked() -> argparse.Namespace:
    parser = figures.parser("learning", __doc__.splitlines()[0])
    parser.add_argument("--taste", action="append", metavar="NAME", help="this one; may be given again")
    parser.add_argument("--seed", action="append", type=int, metavar="N", help="this one; may be given again")
    parser.add_argument("--cells", type=int, metavar="N", help="runs no more than so many of those that are missing")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which a cell begins no more cycles")
    parser.add_argument("--again", action="store_true", help="also runs those anew that were cut short")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="keeps each cell's data and logs there")
    asked = parser.parse_args()
    try:
        for name in asked.taste or ():
            tastes.find(name)
    except SetupError as error:
        parser.error(str(error))
    return asked


def main() -> None:
    asked, console = _asked(), figures.console()
    plan, file = (QUICK_PLAN, asked.json) if asked.quick else (Plan(), asked.json or RESULTS)
    names, seeds = ([QUICK_TASTE], SEEDS[:1]) if asked.quick else (list(TASTES), SEEDS)
    overrides = list(QUICK) if asked.quick else []
    settings = digest(plan, overrides)
    # Seed by seed: who has no time for all then has some of every taste.
    wanted = [(taste, seed) for seed in asked.seed or seeds for taste in asked.taste or names]
    left = missing(wanted, read(file), settings, again=asked.again)
    now = left[: asked.cells]
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} cells are there, {len(now)} are run now")
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        if asked.quick:
            overrides.append(f"model.path={tiny_model.write(Path(scratch) / 'model')}")
        runner = partial(
            in_its_own_process, plan=plan, overrides=overrides, minutes=asked.minutes, data_dir=asked.data_dir
        )
        cells = run(now, file, plan, settings, asked.quick, runner)
    alike = [cell for cell in cells if cell.settings == settings]
    if len(alike) < len(cells):
        console.print(f"{len(cells) - len(alike)} cells were made with other settings and are not in these tables")
    for table in tables(alike, plan):
        console.print(table)
    if any((cell.taste, cell.seed) in now and not cell.done for cell in alike):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
