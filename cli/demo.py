"""`thumbwheel demo`: the proof that the wheel turns.

    start fresh ─► exam ─► ┌ raters rate a wave ─► learner's cycle ─► swap under running streams ┐ ─► exam ─► report
                           └───────────────────── until the ratings are used up ◄────────────────┘

The demo sees and does only what any client can: RPCs and /metrics pages. The exam's prompts and the visitors' answers
are never rated, and the learner trains on rated turns alone, so neither can reach it; nor does it know of tastes.

Raters wait while a cycle runs. People would not; but here every answer that is rated shall come from the version that
is live when its cycle begins, so that few ratings go a long way.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cli import base_model, connection, demo_report, fresh, prompts, tastes
from cli.connection import Door, Services
from cli.demo_report import Report
from cli.demo_view import View
from cli.exam import Exam, Marks
from cli.options import ConfigFile, Overrides, resolve
from cli.patience import Patience
from cli.raters import Judgement, Raters
from cli.simulate import Concurrency, Noise, Seed, TasteName
from cli.tastes import Taste
from cli.versions import list_pages
from cli.visitors import Visitors
from cli.watch import Learner, Watch
from thumbwheel.config import Client, Security
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import record_pb2 as pb

CANDIDATE_ASKED = 0.4
"""Progress of the gate from which on a release may follow: all that a candidate is held against is known."""


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
            report = await Demo(plan, View(console)).run(folder, _options(plan, config, set_, console))
        reports.append(report)
        if json is not None:
            report.write(json)
        demo_report.show(report, console)

    connection.run(work)
    if not all(report.fine for report in reports):
        raise typer.Exit(1)


def _options(plan: Plan, file: Path | None, overrides: Sequence[str] | None, console: Console) -> list[str]:
    """What `thumbwheel up` is told, so that it meets nothing that is there already."""
    # Prepared where `thumbwheel up` keeps it, so that this takes its time only once.
    prepared = base_model.ensure(resolve(file, list(overrides or ()), None), console)
    sets = [
        *(overrides or ()),
        f"model.path={prepared.model.path}",
        f"redis.namespace=demo-{uuid.uuid4().hex}",
        "artifacts=",
        "server.host=127.0.0.1",
        # Its raters name themselves.
        *(f"security.{name}={value}" for name, value in Security()),
        *(f"client.{name}={value}" for name, value in Client()),
        "learner.server=",
        "server.grpc_port=0",
        "server.admin_port=0",
        "server.http_port=0",
        "learner.http_port=0",
        f"learner.min_votes={min(plan.waves)}",
        f"learner.seed={plan.seed}",
        # Our visitors chat through the end of the gate; two of them need not slow the learner to a crawl.
        f"server.rollout_sequences_busy={prepared.server.rollout_sequences}",
        "learner.niceness=0",
    ]
    return [*(("--config", str(file)) if file else ()), *(word for item in sets for word in ("--set", item))]


class Demo:
    """One run. Read `run` and `_turn` first."""

    def __init__(self, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._started = time.monotonic()
        self._patience = Patience()
        self._streams_at_swaps: list[int] = []

    async def run(self, folder: Path, options: Sequence[str]) -> Report:
        """Raises SetupError if it cannot start or the learner cannot finish, grpc.RpcError if a call fails for good."""
        async with self._view.shown():
            start = self._view.phase("starting", 1)
            async with (
                fresh.running(folder, options) as instance,
                connection.connect(Door(instance.grpc, instance.admin)) as services,
                self._watched(services, Watch(services, instance)) as (watch, visitors),
            ):
                start.end(f"ready at {instance.grpc}")
                plan = self._plan
                exam = Exam(services, plan.taste, prompts.held_out(), plan.samples, plan.seed, self._patience)
                before = await self._examine(exam, "measuring before", watch.live)
                raters = await self._rate_and_learn(services, watch, visitors)
                after = await self._examine(exam, "measuring after", watch.live)
                live = await self._live(services)
        return self._report(before, after, raters, watch, visitors, live)

    @asynccontextmanager
    async def _watched(self, services: Services, watch: Watch) -> AsyncIterator[tuple[Watch, Visitors]]:
        visitors = Visitors(services, prompts.rated(), self._plan.seed)

        def count() -> None:
            self._streams_at_swaps.append(visitors.running)

        watch.on_release = count
        self._view.show(lambda: _status(watch, visitors))
        async with watch.present(), visitors.present():
            yield watch, visitors

    async def _rate_and_learn(self, services: Services, watch: Watch, visitors: Visitors) -> Raters:
        plan = self._plan
        phase = self._view.phase("rating", plan.ratings)

        def show(judgement: Judgement) -> None:
            rate = raters.tally.versions[judgement.version].up_rate
            phase.reached(raters.tally.ratings, f"{judgement.version}: {rate:.0%} liked")

        raters = Raters(
            services, plan.taste, prompts.rated(), plan.noise, plan.seed, plan.concurrency, self._patience, show
        )
        for number, wave in enumerate(plan.waves, 1):
            if time.monotonic() - self._started > 60 * plan.minutes:
                self._view.say(f"{plan.minutes:g} minutes are over; no more ratings")
                break
            await raters.rate(wave)
            version = watch.live
            self._view.say(f"{wave} ratings; the taste liked {raters.tally.versions[version].up_rate:.0%} of {version}")
            await self._turn(number, watch, visitors)
        return raters

    async def _turn(self, number: int, watch: Watch, visitors: Visitors) -> None:
        """Waits for one cycle; visitors' answers stream from its last stages until the server has followed."""
        finished, outcomes, parent = watch.learner.finished, dict(watch.learner.cycles), watch.live
        phase = self._view.phase(f"learning, cycle {number}", 1)
        await watch.until(lambda: _near_release(watch.learner) or watch.learner.finished > finished)
        visitors.let_in(True)
        await watch.until(lambda: watch.learner.finished > finished and watch.live == watch.serving)
        visitors.let_in(False)
        gained = [name for name, count in watch.learner.cycles.items() if count > outcomes.get(name, 0)]
        released = f", {watch.live} is live" if watch.live != parent else ""
        phase.end(f"{' and '.join(gained)}{released}; AUC {watch.learner.auc:.2f}, KL {watch.learner.kl:.1f}")

    async def _examine(self, exam: Exam, title: str, version: str) -> Marks:
        phase = self._view.phase(title, exam.answers)
        marks = await exam.take(version, phase.advance)
        phase.end(demo_report.marks_line(marks))
        return marks

    async def _live(self, services: Services) -> pb.VersionRecord:
        async for page in list_pages(services, user=""):
            for record in page.versions:
                if record.name == page.live:
                    return record
        return pb.VersionRecord(name="base")

    def _report(
        self, before: Marks, after: Marks, raters: Raters, watch: Watch, visitors: Visitors, live: pb.VersionRecord
    ) -> Report:
        plan, outcomes = self._plan, watch.learner.cycles
        return Report(
            taste=plan.taste_name,
            noise=plan.noise,
            seed=plan.seed,
            ratings=raters.tally.ratings,
            cycles=watch.learner.finished,
            releases=outcomes.get("released", 0),
            up_rate_before=before.up_rate,
            up_rate_after=after.up_rate,
            heldout_prompts=len(prompts.held_out()),
            competence_before=before.competence,
            competence_after=after.competence,
            kl_nats_per_sequence=live.metrics.get("kl_nats_per_sequence", 0.0),
            failed_requests=self._patience.failures + visitors.failed + before.failures + after.failures,
            truncated_streams=visitors.truncated,
            swaps=watch.swaps,
            swap_seconds=watch.swap_seconds / watch.swaps if watch.swaps else 0.0,
            wall_seconds=time.monotonic() - self._started,
            samples_per_prompt=plan.samples,
            version_before=before.version,
            version_after=after.version,
            outcomes=outcomes,
            version_metrics=dict(live.metrics),
            streams_at_swaps=tuple(self._streams_at_swaps),
            streams=visitors.finished + visitors.failed,
            up_rate_while_rating=demo_report.up_rates(raters.tally),
            before=before.samples,
            after=after.samples,
        )


def _near_release(learner: Learner) -> bool:
    return learner.stage == "committing" or (learner.stage == "gate" and learner.progress >= CANDIDATE_ASKED)


def _status(watch: Watch, visitors: Visitors) -> str:
    learner = watch.learner
    streams = f" · {visitors.running} streams" if visitors.running else ""
    if not learner.stage:
        return f"live: {watch.live}{streams}"
    stage = f"{learner.stage.replace('_', ' ')} {learner.progress:.0%}" if learner.stage != "waiting" else "waiting"
    return (
        f"live: {watch.live} · learner: {stage}, {learner.waiting} votes waiting, AUC {learner.auc:.2f}, "
        f"reward {learner.reward:+.2f}, KL {learner.kl:.1f}{streams}"
    )
