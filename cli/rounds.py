"""Rounds of the wheel on a thumbwheel of one's own, which `thumbwheel demo` and `bench.learning` are made of.

    start fresh ─► exam ─► ┌ raters rate a wave ─► learner's cycle ─► swap under running streams ┐ ─► exam
                           └──────────────────── as often as the caller asks ◄───────────────────┘

What happens here any client can see and do: RPCs and /metrics pages. The exam's prompts and the visitors' answers are
never rated, and the learner trains on rated turns alone, so neither can reach it; nor does it know of tastes.

Raters wait while a cycle runs. People would not; but here every answer that is rated shall come from the version that
is live when its cycle begins, so that few ratings go a long way.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cli import base_model, connection, demo_report, fresh, prompts
from cli.connection import Door, Services
from cli.demo_view import Phase, View
from cli.exam import Exam, Marks
from cli.options import resolve
from cli.patience import Patience
from cli.raters import Judgement, Raters
from cli.tastes import Taste
from cli.versions import list_pages
from cli.visitors import Visitors
from cli.watch import Learner, Watch
from thumbwheel.config import Client, Security
from thumbwheel_client.v1 import record_pb2 as pb

CANDIDATE_ASKED = 0.4
"""Progress of the gate from which on a release may follow: all that a candidate is held against is known."""


@dataclass(frozen=True, slots=True)
class Crowd:
    """Who rates, and how closely a version is looked at."""

    taste: Taste
    noise: float
    seed: int
    concurrency: int
    samples: int
    """Answers to each of the exam's prompts."""


def fresh_options(
    votes: int, seed: int, console: Console, file: Path | None = None, overrides: Sequence[str] = ()
) -> list[str]:
    """What `thumbwheel up` is told, so that it meets nothing that is there already.

    Args:
        votes: new ones that start a cycle.
        file: the configuration; None is `thumbwheel.toml`, if there is one.
    """
    # Prepared where `thumbwheel up` keeps it, so that this takes its time only once.
    prepared = base_model.ensure(resolve(file, list(overrides), None), console)
    sets = [
        *overrides,
        f"model.path={prepared.model.path}",
        f"model.full_precision={prepared.model.full_precision}",
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
        "server.web_port=0",
        "learner.http_port=0",
        f"learner.min_votes={votes}",
        f"learner.seed={seed}",
        # Our visitors chat through the end of the gate; two of them need not slow the learner to a crawl.
        f"server.rollout_sequences_busy={prepared.server.rollout_sequences}",
        "learner.niceness=0",
    ]
    return [*(("--config", str(file)) if file else ()), *(word for item in sets for word in ("--set", item))]


class Rounds:
    """A thumbwheel that runs, its raters, visitors and examiner. Read `begin` and `turn` first."""

    def __init__(self, services: Services, watch: Watch, crowd: Crowd, ratings: int, view: View) -> None:
        patience = Patience()
        self.watch = watch
        self.visitors = Visitors(services, prompts.rated(), crowd.seed)
        self.raters = Raters(
            services, crowd.taste, prompts.rated(), crowd.noise, crowd.seed, crowd.concurrency, patience, self._show
        )
        self.streams_at_swaps: list[int] = []
        """Visitors' answers that were streaming when each release was announced."""
        self._patience = patience
        self._exam = Exam(services, crowd.taste, prompts.held_out(), crowd.samples, crowd.seed, patience)
        self._services = services
        self._view = view
        self._ratings = ratings
        self._rating: Phase | None = None
        self._turns = 0

    @classmethod
    @asynccontextmanager
    async def begin(
        cls, folder: Path, options: Sequence[str], crowd: Crowd, ratings: int, view: View
    ) -> AsyncIterator[Rounds]:
        """Starts everything in an empty folder, and stops it at the end.

        Args:
            options: of `thumbwheel up`; see `fresh_options`.
            ratings: how many there will be at most, for the view.

        Raises:
            SetupError: it cannot start or the learner cannot finish.
            grpc.RpcError: a call failed for good.
        """
        start = view.phase("starting", 1)
        async with (
            fresh.running(folder, options) as instance,
            connection.connect(Door(instance.grpc, instance.admin)) as services,
        ):
            rounds = cls(services, Watch(services, instance), crowd, ratings, view)
            rounds.watch.on_release = rounds._count_streams
            view.show(rounds._status)
            async with rounds.watch.present(), rounds.visitors.present():
                start.end(f"ready at {instance.grpc}")
                yield rounds

    async def examine(self, title: str) -> Marks:
        """Measures the live version."""
        phase = self._view.phase(title, self._exam.answers)
        marks = await self._exam.take(self.watch.live, phase.advance)
        phase.end(demo_report.marks_line(marks))
        return marks

    async def turn(self, ratings: int) -> tuple[str, ...]:
        """So many ratings and the cycle that they start, until the server has followed. How the cycle ended."""
        await self._rate(ratings)
        return await self._learn()

    async def live(self) -> pb.VersionRecord:
        """The live version's record."""
        async for page in list_pages(self._services, user=""):
            for record in page.versions:
                if record.name == page.live:
                    return record
        return pb.VersionRecord(name="base")

    @property
    def failures(self) -> int:
        """Calls of raters and examiner that did not go well, whether or not a later try did, and visitors' streams."""
        return self._patience.failures + self.visitors.failed

    async def _rate(self, ratings: int) -> None:
        self._rating = self._rating or self._view.phase("rating", self._ratings)
        await self.raters.rate(ratings)
        version = self.watch.live
        liked = self.raters.tally.versions[version].up_rate
        self._view.say(f"{ratings} ratings; the taste liked {liked:.0%} of {version}")

    async def _learn(self) -> tuple[str, ...]:
        """Visitors' answers stream from the cycle's last stages on."""
        watch, visitors = self.watch, self.visitors
        finished, outcomes, parent = watch.learner.finished, dict(watch.learner.cycles), watch.live
        self._turns += 1
        phase = self._view.phase(f"learning, cycle {self._turns}", 1)
        await watch.until(lambda: _near_release(watch.learner) or watch.learner.finished > finished)
        visitors.let_in(True)
        await watch.until(lambda: watch.learner.finished > finished and watch.live == watch.serving)
        visitors.let_in(False)
        gained = tuple(name for name, count in watch.learner.cycles.items() if count > outcomes.get(name, 0))
        released = f", {watch.live} is live" if watch.live != parent else ""
        phase.end(f"{' and '.join(gained)}{released}; AUC {watch.learner.auc:.2f}, KL {watch.learner.kl:.1f}")
        return gained

    def _show(self, judgement: Judgement) -> None:
        assert self._rating is not None
        rate = self.raters.tally.versions[judgement.version].up_rate
        self._rating.reached(self.raters.tally.ratings, f"{judgement.version}: {rate:.0%} liked")

    def _count_streams(self) -> None:
        self.streams_at_swaps.append(self.visitors.running)

    def _status(self) -> str:
        learner, live = self.watch.learner, self.watch.live
        streams = f" · {self.visitors.running} streams" if self.visitors.running else ""
        if not learner.stage:
            return f"live: {live}{streams}"
        waiting = learner.stage == "waiting"
        stage = "waiting" if waiting else f"{learner.stage.replace('_', ' ')} {learner.progress:.0%}"
        return (
            f"live: {live} · learner: {stage}, {learner.waiting} votes waiting, AUC {learner.auc:.2f}, "
            f"reward {learner.reward:+.2f}, KL {learner.kl:.1f}{streams}"
        )


def _near_release(learner: Learner) -> bool:
    return learner.stage == "committing" or (learner.stage == "gate" and learner.progress >= CANDIDATE_ASKED)
