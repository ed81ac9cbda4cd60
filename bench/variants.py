"""One cycle or several of `thumbwheel demo` with one setting or another, and what became of the same votes.

Every variant of a seed has the same prompts, sampling seeds, raters and mistakes, and a thumbwheel of its own. A run is
written as soon as it is over, and one that is there is not run again: who has no time for all goes on later.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from bench import figures
from bench.figures import Spread

MINUTES = 30
"""After which a run has failed."""
FIGURES = (
    "up_rate_before", "up_rate_after", "competence_change", "kl_nats", "minutes", "learner_cpu_minutes",
    "learner_peak_gib",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Study:
    """What is held against each other. `variants`: name -> settings; the first is how the product comes."""

    name: str
    words: str
    variants: Mapping[str, Sequence[str]]
    taste: str = "brief"
    noise: float = 0.1
    ratings: int = 100
    cycles: int = 1
    quick_ratings: int = 48


Run = dict[str, Any]
"""A variant with a seed: `variant`, `seed`, `commit`, `outcomes` and FIGURES."""


def main(study: Study) -> None:
    """Runs what is missing, and prints a table of what is there."""
    asked = _asked(study)
    ratings = study.quick_ratings if asked.quick else study.ratings
    console, runs = figures.console(), [run for run in read(asked.json) if run["ratings"] == ratings]
    # Seed by seed: who has no time for all then has some of every variant.
    wanted = [(name, seed) for seed in asked.seed or (1,) for name in asked.variant or study.variants]
    left = missing(wanted, runs)
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} runs are there, {len(left[: asked.runs])} are made now")
    for name, seed in left[: asked.runs]:
        console.print(f"{name}, seed {seed} ...")
        runs.append(_run(study, name, seed, ratings))
        results = {"taste": study.taste, "noise": study.noise, "runs": runs, "variants": summary(runs)}
        figures.write(asked.json, study.name, asked.quick, results)
    console.print(_table(study, summary(runs)))


def read(file: Path | None) -> list[Run]:
    """Those of former calls, with --quick or without."""
    if file is None or not file.exists():
        return []
    runs: list[Run] = json.loads(file.read_text(encoding="utf-8"))["results"]["runs"]
    return runs


def missing(wanted: Iterable[tuple[str, int]], runs: Sequence[Run]) -> list[tuple[str, int]]:
    """Which of them are not there."""
    there = {(run["variant"], run["seed"]) for run in runs}
    return [each for each in wanted if each not in there]


def summary(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Variant -> how many candidates were released, and each figure over the seeds."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(run["variant"] for run in runs):
        mine = [run for run in runs if run["variant"] == name]
        outcomes = [outcome for run in mine for outcome in run["outcomes"]]
        found[name] = {"released": outcomes.count("released"), "cycles": len(outcomes)}
        found[name] |= {each: Spread.of([run[each] for run in mine]) for each in FIGURES}
    return found


def _run(study: Study, name: str, seed: int, ratings: int) -> Run:
    """
    Raises:
        RuntimeError: the demo failed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        page = Path(scratch) / "found.json"
        command = [sys.executable, "-m", "cli.main", "demo", "--taste", study.taste, "--noise", str(study.noise)]
        command += ["--seed", str(seed), "--json", str(page)]
        command += ["--ratings", str(ratings * study.cycles), "--votes-per-cycle", str(ratings)]
        command += [word for setting in study.variants[name] for word in ("--set", setting)]
        words, began = Path(scratch) / "log", time.monotonic()
        peak, seconds = 0, 0.0
        # Into a file: a pipe that nobody reads meanwhile holds up who writes.
        with words.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as demo:
            while demo.poll() is None and time.monotonic() < began + 60 * MINUTES:
                learner = _learner(demo.pid)
                if learner is not None:
                    peak, seconds = max(peak, learner[0]), learner[1]
                time.sleep(1)
            demo.terminate()
        if not page.is_file():
            said = words.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"the demo ({name}, seed {seed}) failed:\n{said}")
        found = json.loads(page.read_text(encoding="utf-8"))
    return {
        "variant": name,
        "seed": seed,
        "commit": figures.commit(),
        "ratings": ratings,
        "outcomes": found["outcomes"],
        "up_rate_before": found["up_rate_before"],
        "up_rate_after": found["up_rate_after"],
        "competence_change": found["competence_after"] - found["competence_before"],
        "kl_nats": found["kl_nats_per_sequence"],
        "minutes": found["version_metrics"].get("seconds", math.nan) / 60,
        "learner_cpu_minutes": seconds / 60,
        "learner_peak_gib": peak / 2**30,
    }


def _learner(demo: int) -> tuple[int, float] | None:
    """Most memory in bytes and CPU seconds that the learner below a process has had; None where there is none."""
    try:
        for process in psutil.Process(demo).children(recursive=True):
            if process.cmdline()[1:3] == ["-m", "learner"]:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                [peak] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
                return 1024 * peak, sum(process.cpu_times()[:2])
    except (psutil.Error, OSError, ValueError):
        pass  # it has just ended
    return None


def _table(study: Study, found: Mapping[str, Mapping[str, Any]]) -> Table:
    title = f"{study.taste}, {study.noise:.0%} noise, {study.cycles} × {study.ratings} ratings"
    table = Table(title=title, title_justify="left", header_style="dim")
    for heading in ("", "released", "up-rate", "after", "questions", "KL, nats", "minutes", "learner's CPU", "GiB"):
        table.add_column(heading)
    for name, row in found.items():
        table.add_row(
            name,
            f"{row['released']} of {row['cycles']}",
            *(_words(row[each], f".{digits}f") for each, digits in zip(FIGURES, (2, 2, 3, 1, 1, 1, 2), strict=True)),
        )
    return table


def _words(spread: Spread, form: str) -> str:
    return f"{spread.median:{form}} ({spread.low:{form}} to {spread.high:{form}})"


def _asked(study: Study) -> argparse.Namespace:
    parser = figures.parser(study.name, study.words)
    parser.add_argument("--variant", action="append", choices=list(study.variants), help="this one; may be given again")
    parser.add_argument("--seed", action="append", type=int, metavar="N", help="this one; may be given again")
    parser.add_argument("--runs", type=int, metavar="N", help="makes no more than so many of those that are missing")
    return parser.parse_args()
