"""`thumbwheel demo`, the proof that the wheel turns: an exam, rounds until the ratings are used up, the same exam."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import connection, demo_report, fresh, prompts, tastes
from cli.connection import Door
from cli.demo_report import Report
from cli.demo_view import View
from cli.exam import Marks
from cli.options import ConfigFile, Overrides
from cli.rounds import Crowd, Rounds, fresh_options
from cli.simulate import Concurrency, Noise, Seed, TasteName
from cli.tastes import Taste
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import record_pb2 as pb


@dataclass(frozen=True, slots=True)
class Plan:
    """What the demo is asked to show."""

    taste_name: str
    taste: Taste
    noise: float
    ratings: int
    votes_per_cycle: int
    concurrency: int
    seed: int
    samples: int
    minutes: float

    @property
    def crowd(self) -> Crowd:
        return Crowd(self.taste, self.noise, self.seed, self.concurrency, self.samples)

    @property
    def waves(self) -> list[int]:
        """Ratings between two cycles: equal shares, each enough to start one."""
        number = max(1, self.ratings // self.votes_per_cycle)
        return [self.ratings // number + (place < self.ratings % number) for place in range(number)]


def demo(
    taste: TasteName = "brief",
    noise: Noise = 0.1,
    ratings: Annotated[int, typer.Option("--ratings", min=1, help="How many answers are rated in all.")] = 288,
    seed: Seed = 1,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Empty folder to keep; default: a temporary one.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Writes what was found.")] = None,
    votes_per_cycle: Annotated[
        int, typer.Option("--votes-per-cycle", min=1, help="New votes that start a cycle of the learner.")
    ] = 144,
    concurrency: Concurrency = 24,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Answers to each held-out prompt.")] = 4,
    minutes: Annotated[float, typer.Option("--minutes", min=0, help="After this no new wave of ratings begins.")] = 60,
    config: ConfigFile = None,
    set_: Overrides = None,
) -> None:
    """Prove it: measure, let raters vote while it learns and swaps, measure again."""
    console = Console(highlight=False)
    reports: list[Report] = []

    async def work(_: Door) -> None:
        if json is not None and not json.absolute().parent.is_dir():
            raise SetupError(f"--json {json}: there is no folder {json.absolute().parent}")
        plan = Plan(taste, tastes.find(taste), noise, ratings, votes_per_cycle, concurrency, seed, samples, minutes)
        with fresh.empty_folder(data_dir) as folder:
            options = fresh_options(min(plan.waves), seed, console, config, set_ or ())
            report = await Demo(plan, View(console)).run(folder, options)
        reports.append(report)
        if json is not None:
            report.write(json)
        demo_report.show(report, console)

    connection.run(work)
    if not all(report.fine for report in reports):
        raise typer.Exit(1)


class Demo:
    """One run."""

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._started = time.monotonic()

    async def run(self, folder: Path, options: Sequence[str]) -> Report:
        """Raises SetupError if it cannot start or the learner cannot finish, grpc.RpcError if a call fails for good."""
        plan = self._plan
        async with (
            self._view.shown(),
            Rounds.begin(folder, options, plan.crowd, plan.ratings, self._view) as rounds,
        ):
            before = await rounds.examine("measuring before")
            for wave in plan.waves:
                if time.monotonic() - self._started > 60 * plan.minutes:
                    self._view.say(f"{plan.minutes:g} minutes are over; no more ratings")
                    break
                await rounds.turn(wave)
            after = await rounds.examine("measuring after")
            live = await rounds.live()
        return self._report(before, after, rounds, live)

    def _report(self, before: Marks, after: Marks, rounds: Rounds, live: pb.VersionRecord) -> Report:
        plan, watch, visitors, tally = self._plan, rounds.watch, rounds.visitors, rounds.raters.tally
        outcomes = watch.learner.cycles
        return Report(
            taste=plan.taste_name,
            noise=plan.noise,
            seed=plan.seed,
            ratings=tally.ratings,
            cycles=watch.learner.finished,
            releases=outcomes.get("released", 0),
            up_rate_before=before.up_rate,
            up_rate_after=after.up_rate,
            heldout_prompts=len(prompts.held_out()),
            competence_before=before.competence,
            competence_after=after.competence,
            kl_nats_per_sequence=live.metrics.get("kl_nats_per_sequence", 0.0),
            failed_requests=rounds.failures + before.failures + after.failures,
            truncated_streams=visitors.truncated,
            swaps=watch.swaps,
            swap_seconds=watch.swap_seconds / watch.swaps if watch.swaps else 0.0,
            wall_seconds=time.monotonic() - self._started,
            samples_per_prompt=plan.samples,
            version_before=before.version,
            version_after=after.version,
            outcomes=outcomes,
            version_metrics=dict(live.metrics),
            streams_at_swaps=tuple(rounds.streams_at_swaps),
            streams=visitors.finished + visitors.failed,
            up_rate_while_rating=demo_report.up_rates(tally),
            before=before.samples,
            after=after.samples,
        )
