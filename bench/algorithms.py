"""The four algorithms on the same votes: what one cycle of each makes of them.

Each runs in a thumbwheel of its own (`thumbwheel demo`): the same prompts, sampling seeds, raters and mistakes, one
cycle from the base, then the demo's exam on prompts that nobody rated. A prompt is asked three times, so that many have
answers that were voted up and others that were voted down: DPO lives on these. What the gate refuses does not go live,
and its row shows the base.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench import figures

ALGORITHMS = ("ppo", "grpo", "dpo", "kto")
TASTE = "brief"
SEED = 1
NOISE = 0.1
RATINGS = 288
QUICK_RATINGS = 96
MINUTES = 30
"""After which one of them has failed."""


def measure(algorithm: str, ratings: int, console: Console) -> dict[str, Any]:
    """One algorithm's row.

    Raises:
        RuntimeError: the demo failed or took too long.
    """
    console.print(f"{algorithm} ...")
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        page = Path(scratch) / "found.json"
        command = [
            sys.executable,
            "-m",
            "cli.main",
            "demo",
            "--taste",
            TASTE,
            "--seed",
            str(SEED),
            "--noise",
            str(NOISE),
        ]
        command += ["--ratings", str(ratings), "--votes-per-cycle", str(ratings), "--json", str(page)]
        command += ["--set", f"learner.algorithm={algorithm}"]
        demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        peak, end = 0, time.monotonic() + 60 * MINUTES
        while demo.poll() is None and time.monotonic() < end:
            peak = max(peak, _learner_peak(demo.pid))
            time.sleep(1)
        demo.terminate()
        said, _ = demo.communicate()
        if not page.is_file():
            raise RuntimeError(f"the demo with {algorithm} failed:\n{said}")
        found = json.loads(page.read_text(encoding="utf-8"))
    cycle = found["version_metrics"]
    return {
        "outcomes": found["outcomes"],
        "up_rate_before": found["up_rate_before"],
        "up_rate_after": found["up_rate_after"],
        "competence_before": found["competence_before"],
        "competence_after": found["competence_after"],
        "kl_nats": found["kl_nats_per_sequence"],
        "cycle_minutes": cycle.get("seconds", math.nan) / 60,
        "learner_peak_gib": peak / 2**30,
        "examples": cycle.get("direct_examples", math.nan),
    }


def _learner_peak(demo: int) -> int:
    """Most memory, in bytes, that the learner below a process has had; 0 where there is none (any more)."""
    try:
        for process in psutil.Process(demo).children(recursive=True):
            if process.cmdline()[1:3] == ["-m", "learner"]:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    except (psutil.Error, OSError, StopIteration):
        pass  # it has just ended
    return 0


def main() -> None:
    """Runs them one after another and prints a table."""
    given = figures.options("algorithms", "The four algorithms on the same votes.")
    console, rows = Console(highlight=False), {}
    for algorithm in ALGORITHMS:
        rows[algorithm] = measure(algorithm, QUICK_RATINGS if given.quick else RATINGS, console)
        # Each takes minutes: what is known is kept.
        figures.write(given.json, "algorithms", given.quick, rows)
    table = Table(title=f"{TASTE}, {NOISE:.0%} noise, one cycle", title_justify="left", header_style="dim")
    for heading in ("", "outcome", "up-rate before", "after", "questions right", "KL, nats", "minutes", "learner, GiB"):
        table.add_column(heading)
    for algorithm, row in rows.items():
        table.add_row(
            algorithm,
            ", ".join(row["outcomes"]),
            f"{row['up_rate_before']:.1%}",
            f"{row['up_rate_after']:.1%}",
            f"{row['competence_before']:.1%} -> {row['competence_after']:.1%}",
            f"{row['kl_nats']:.2f}",
            f"{row['cycle_minutes']:.1f}",
            f"{row['learner_peak_gib']:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
