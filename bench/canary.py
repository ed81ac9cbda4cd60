"""How often the judge of `learner/canary.py` takes back what is as good, and how soon what is worse, in simulation.

python -m bench.canary            a row for each kind of crowd: false rollbacks, drops caught, ratings until then
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from bench import figures
from learner.betting import DropTest

RUNS = 2000
QUICK_RUNS = 20
UP_RATES = (0.3, 0.5, 0.6, 0.75, 0.9)
DROP = 0.15
CROWDS: tuple[tuple[str, float, int | None], ...] = (
    ("everybody votes once, share .2", 0.2, None),
    ("everybody votes once, share .5", 0.5, None),
    ("2,000 people who come again", 0.2, 2000),
    ("300 people who come again", 0.2, 300),
)


def votes(
    rng: np.random.Generator, share: float, old: float, new: float, raters: int | None, spread: float = 0.3
) -> Iterator[tuple[bool, bool]]:
    """(of the canary?, good?) without end, or until every rater has voted once on either arm.

    Args:
        raters: as many come again and again, the first vote of each on each arm counts, and each likes answers up to
            `spread` more or less than the mean; None: every vote is somebody else's.
    """
    if raters is None:
        while True:
            canary = bool(rng.random() < share)
            yield canary, bool(rng.random() < (new if canary else old))
    mood = rng.uniform(-spread, spread, raters)
    counted = np.zeros((2, raters), bool)
    while not counted.all():
        rater, canary = int(rng.integers(raters)), bool(rng.random() < share)
        if not counted[int(canary), rater]:
            counted[int(canary), rater] = True
            chance = min(1.0, max(0.0, (new if canary else old) + mood[rater]))
            yield canary, bool(rng.random() < chance)


def caught(
    rng: np.random.Generator, old: float, new: float, *, share: float = 0.2, raters: int | None = None,
    ratings: int = 300, alpha: float = 0.04,
) -> int | None:  # fmt: skip
    """Votes of the canary's after which it is rolled back; None if it is not within `ratings` of them."""
    test, seen = DropTest(), 0
    for canary, good in votes(rng, share, old, new, raters):
        test.add(canary, good)
        seen += canary
        if test.rejects(alpha):
            return seen
        if seen >= ratings:
            break
    return None


def main() -> None:
    """Simulates all crowds at five up-rates and prints a table."""
    asked = figures.options("canary", "How often what is as good is taken back, and how soon what is worse.")
    console, runs = figures.console(), QUICK_RUNS if asked.quick else RUNS
    table = Table(title=f"{runs} trials each, a drop of {DROP:.0%}", title_justify="left", header_style="dim")
    for heading in ("crowd", "up-rate", "false rollbacks", "drops caught", "ratings until then"):
        table.add_column(heading)
    rows = []
    for number, (words, share, raters) in enumerate(CROWDS):
        for old in UP_RATES:
            equal, drop = (
                [
                    caught(np.random.default_rng([number, run]), old, new, share=share, raters=raters)
                    for run in range(runs)
                ]
                for new in (old, old - DROP)
            )
            found = [ratings for ratings in drop if ratings is not None]
            row = {
                "crowd": words,
                "up_rate": old,
                "false": sum(ratings is not None for ratings in equal) / runs,
                "caught": len(found) / runs,
                "median_ratings": float(np.median(found)) if found else None,
            }
            rows.append(row)
            middle = "" if row["median_ratings"] is None else f"{row['median_ratings']:.0f}"
            table.add_row(words, f"{old:.2f}", f"{row['false']:.1%}", f"{row['caught']:.1%}", middle)
    console.print(table)
    figures.write(asked.json, "canary", asked.quick, {"runs": runs, "drop": DROP, "rows": rows})


if __name__ == "__main__":
    main()
