"""The bookkeeping of the learning bench on cells made up by hand, and one quick run of the whole."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from bench.figures import Spread
from bench.learning import digest, run, tables
from bench.learning_cells import (
    DONE,
    Cell,
    Plan,
    Point,
    Target,
    goes_on,
    missing,
    reached,
    read,
    summary,
    there,
    with_cell,
    write,
)

PLAN = Plan(votes=100, goal=0.8, cycles=3, after=2)


def points(*up_rates: float, competence: float = 0.5, kl: float = 1.0, minutes: float = 4.0) -> tuple[Point, ...]:
    """100 ratings and `minutes` a cycle; each nat and loss of competence comes with the first."""
    return tuple(
        Point(
            cycle, 100 * cycle, minutes * cycle, "released" if cycle else "", f"v{cycle}", rate,
            competence if cycle else 0.5, kl if cycle else 0.0,
        )
        for cycle, rate in enumerate(up_rates)
    )  # fmt: skip


def cell(taste: str = "brief", seed: int = 1, *up_rates: float, settings: str = "same", ended: str = DONE) -> Cell:
    return Cell(taste, seed, settings, "abc1234", "2026-01-01T00:00:00+00:00", {}, points(*up_rates), ended)


# --- a cell's course


@pytest.mark.parametrize(
    ("up_rates", "more"),
    [
        ((0.1,), True),
        ((0.1, 0.8, 0.9), True),
        ((0.1, 0.8, 0.9, 0.9), False),  # two cycles after the first
        ((0.1, 0.8, 0.1, 0.1), False),  # even if it has fallen since
        ((0.1, 0.2, 0.3, 0.4), True),  # not reached: two cycles after the third
        ((0.1, 0.2, 0.3, 0.4, 0.9), True),  # too late to count as reached
        ((0.1, 0.2, 0.3, 0.4, 0.9, 0.9), False),
        ((0.8, 0.7), True),
        ((0.8, 0.7, 0.6), False),
    ],
)
def test_a_cell_goes_on_for_some_cycles_after_its_goal(up_rates: tuple[float, ...], more: bool) -> None:
    assert goes_on(points(*up_rates), PLAN) is more


def test_there_is_where_the_goal_was_reached_or_the_best_of_the_first_cycles() -> None:
    assert there(points(0.1, 0.79, 0.8, 0.95), PLAN).cycle == 2
    assert there(points(0.1, 0.5, 0.4, 0.3, 0.7, 0.7), PLAN).cycle == 1
    assert reached(points(0.1, 0.5, 0.4, 0.3, 0.9, 0.9), PLAN) is None


# --- what is left to do


def test_what_is_there_is_not_run_again() -> None:
    wanted = [("brief", 1), ("numeric", 1), ("brief", 2)]
    cells = [cell("brief", 1, 0.1), cell("numeric", 1, 0.1, ended="RpcError: gone"), cell("unbroken", 1, 0.1)]
    assert missing(wanted, cells, "same") == [("brief", 2)]
    assert missing(wanted, cells, "same", again=True) == [("numeric", 1), ("brief", 2)]
    assert missing(wanted, cells, "other") == wanted


def test_every_cell_is_written_at_once_and_a_second_run_goes_on(tmp_path: Path) -> None:
    file, asked = tmp_path / "learning.json", list[tuple[str, int]]()

    def runner(taste: str, seed: int) -> tuple[list[Point], str]:
        if seed == 2:
            raise KeyboardInterrupt
        assert [(one.taste, one.seed) for one in read(file)] == asked, "those before lie in the file already"
        asked.append((taste, seed))
        return list(points(0.1, 0.9)), DONE if taste == "brief" else "SetupError: frozen"

    wanted = [("brief", 1), ("numeric", 1), ("brief", 2)]
    with pytest.raises(KeyboardInterrupt):
        run(wanted, file, PLAN, "same", False, runner)
    cells = read(file)
    assert [(one.taste, one.seed, one.ended) for one in cells] == [
        ("brief", 1, DONE), ("numeric", 1, "SetupError: frozen"),
    ]  # fmt: skip
    assert cells[0].points == points(0.1, 0.9)
    assert missing(wanted, cells, "same") == [("brief", 2)]
    page = json.loads(file.read_text(encoding="utf-8"))
    assert page["results"]["tastes"]["numeric"]["cut_short"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_a_cell_takes_the_place_of_its_former_run_alone() -> None:
    cells = [cell("brief", 2, 0.1), cell("numeric", 1, 0.2), cell("brief", 1, 0.3)]
    now = with_cell(cells, cell("brief", 2, 0.4, settings="new"))
    assert [(one.taste, one.seed, one.points[0].up_rate) for one in now] == [
        ("brief", 1, 0.3), ("brief", 2, 0.4), ("numeric", 1, 0.2),
    ]  # fmt: skip


def test_the_settings_name_what_cells_have_in_common() -> None:
    assert digest(PLAN, ()) == digest(PLAN, ("server.grpc_port=0",))
    assert digest(PLAN, ()) != digest(PLAN, ("learner.ppo.learning_rate=0.1",))
    assert digest(PLAN, ()) != digest(dataclasses.replace(PLAN, noise=0.2), ())


# --- what they come to


def test_figures_are_spreads_over_seeds_and_failures_count(tmp_path: Path) -> None:
    cells = [
        cell("brief", 1, 0.1, 0.8, 0.9, 0.7),
        cell("brief", 2, 0.2, 0.3, 0.8, 0.8, 0.6),
        cell("brief", 3, 0.3, 0.4, ended="out of time"),
        cell("numeric", 1, ended="SetupError: did not start"),
        cell("unbroken", 1, 0.9, settings="other"),
    ]
    found = summary(cells, PLAN)["brief"]
    assert (found["runs"], found["cut_short"], found["reached"]) == (3, 1, 2)
    assert found["before"] == Spread(0.2, 0.1, 0.3, 3)
    assert found["there"]["up_rate"] == Spread(0.8, 0.4, 0.8, 3)
    assert found["there"]["ratings"] == Spread(100, 100, 200, 3)
    assert found["at_last"]["up_rate"] == Spread(0.6, 0.4, 0.7, 3)
    assert found["at_last"]["minutes"] == Spread(12, 4, 16, 3)
    assert summary(cells, PLAN)["numeric"]["there"]["up_rate"] is None

    write(tmp_path / "found.json", cells, PLAN, "same", True)
    assert read(tmp_path / "found.json") == cells
    assert "unbroken" not in json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["results"]["tastes"]
    console = Console(file=io.StringIO(), width=250)
    for table in tables(cells, PLAN):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "3, 1 cut short" in text
    assert "0.8 (0.4 to 0.8)" in text
    assert "not measured" in text


def test_a_target_looks_no_further_than_its_ratings_and_at_everything_it_asks() -> None:
    target = Target("brief", 0.8, 100, minutes=5, kl=5, competence_change=0)

    def met(*up_rates: float, **changes: float) -> bool:
        one = dataclasses.replace(cell(), points=points(*up_rates, **changes))
        found = target.of([one, cell("numeric", 1, 0.0, 0.0)])
        assert found is not None
        return bool(found["met"])

    assert met(0.1, 0.8, 0.1)
    assert not met(0.1, 0.79, 0.9)
    assert not met(0.1, 0.8, minutes=5.1)
    assert not met(0.1, 0.8, kl=5.1)
    assert not met(0.1, 0.8, competence=0.49)
    assert target.of([cell("numeric", 1, 0.1, 0.9)]) is None
    assert target.of([cell("brief", 1, 0.9)]) is None, "an exam of the base alone shows nothing"
    hard = Target("numeric", 0.6, 300).of([cell("numeric", 1, 0.1, 0.2, 0.3, 0.6, 0.1)])
    assert hard is not None
    assert (hard["met"], hard["target"]) == (True, {"taste": "numeric", "up_rate": 0.6, "ratings": 300})


# --- the whole


@pytest.mark.slow
async def test_a_quick_run(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.learning", "--quick", "--json", str(file),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 600)
    assert process.returncode == 0, out.decode()
    [found] = read(file)
    assert (found.taste, found.seed, found.ended) == ("unbroken", 1, DONE)
    assert [(point.cycle, point.ratings) for point in found.points] == [(0, 0), (1, 48)]
    assert found.points[1].outcome == "released"
    assert found.points[1].kl > 0
