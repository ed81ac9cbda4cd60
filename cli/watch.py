"""What a running thumbwheel does, as anyone can see it: version changes by RPC, the rest on its /metrics pages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio

from cli.connection import Services
from cli.instance import Instance
from cli.scrape import Page, scrape
from thumbwheel.errors import SetupError
from thumbwheel_client.v1 import models_pb2

POLL_SECONDS = 0.5
MAX_FAILURES = 3
"""Cycles that may break off, one after the other, before waiting for one is given up."""


@dataclass(slots=True)
class Learner:
    """The learner, as it was last seen."""

    stage: str = ""
    progress: float = 0.0
    waiting: int = 0
    """Votes in no cycle yet."""
    auc: float = 0.0
    kl: float = 0.0
    reward: float = 0.0
    cycles: dict[str, int] = field(default_factory=dict)
    """Finished cycles by outcome, over restarts of the learner."""
    failures: int = 0
    """Cycles that broke off."""

    @property
    def finished(self) -> int:
        return sum(self.cycles.values())


class Watch:
    """Follows one instance while `present`."""

    def __init__(self, services: Services, instance: Instance) -> None:
        self.live = ""
        """The live version, by the registry."""
        self.serving = ""
        """The version that the server answers with."""
        self.learner = Learner()
        self.on_release: Callable[[], None] = lambda: None
        """Called whenever another version has become live."""
        self.swaps = 0
        self.swap_seconds = 0.0
        """Over all swaps together."""
        self._services = services
        self._instance = instance
        self._seen = asyncio.Condition()
        self._counted: dict[str, float] = {}
        self._first_swaps: tuple[float, float] | None = None

    @asynccontextmanager
    async def present(self) -> AsyncIterator[None]:
        """Follows until the body ends."""
        tasks = [asyncio.create_task(self._follow_versions()), asyncio.create_task(self._poll())]
        try:
            await self.until(lambda: bool(self.live) and self.live == self.serving)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something to be seen.

        Raises:
            SetupError: the learner's cycles break off again and again, or a tripwire has frozen it.
        """
        allowed = self.learner.failures + MAX_FAILURES
        async with self._seen:
            while not condition():
                if self.learner.stage == "frozen":
                    raise SetupError("a tripwire has frozen the learner: `thumbwheel unfreeze` shows why")
                if self.learner.failures >= allowed:
                    raise SetupError(f"{MAX_FAILURES} cycles of the learner broke off; its log says why")
                # A poll ends every few seconds, whoever answers it: longer silence is our own fault.
                await asyncio.wait_for(self._seen.wait(), 60)

    async def _follow_versions(self) -> None:
        while True:
            try:
                async for change in self._services.models.WatchVersions(models_pb2.WatchVersionsRequest()):
                    if self.live and change.live != self.live:
                        self.on_release()
                    self.live = change.live
                    await self._tell()
            except grpc.aio.AioRpcError:
                pass  # Servers end old connections, and may be restarted; the first message says where things are.
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        while True:
            server, learner = await asyncio.gather(scrape(self._instance.http), scrape(self._instance.learner_http))
            if server is not None:
                self._see_server(server)
            if learner is not None:
                self._see_learner(learner)
            await self._tell()
            await asyncio.sleep(POLL_SECONDS)

    def _see_server(self, page: Page) -> None:
        live = [name for name, value in page.by("thumbwheel_live_version_info", "version").items() if value]
        self.serving = live[0] if live else ""
        swaps = page.value("thumbwheel_swap_seconds_count"), page.value("thumbwheel_swap_seconds_sum")
        # What the server did to come up is no swap of ours.
        self._first_swaps = self._first_swaps or swaps
        self.swaps = int(swaps[0] - self._first_swaps[0])
        self.swap_seconds = swaps[1] - self._first_swaps[1]

    def _see_learner(self, page: Page) -> None:
        learner = self.learner
        learner.stage = next((s for s, on in page.by("thumbwheel_learner_stage", "stage").items() if on), "")
        learner.progress = page.value("thumbwheel_learner_progress_ratio")
        learner.waiting = int(page.value("thumbwheel_learner_votes_waiting"))
        learner.auc = page.value("thumbwheel_learner_reward_model_auc")
        learner.kl = page.value("thumbwheel_learner_kl_nats")
        learner.reward = page.value("thumbwheel_learner_reward_mean")
        learner.failures += self._more("failures", page.value("thumbwheel_learner_failures_total"))
        for outcome, value in page.by("thumbwheel_learner_cycles_total", "outcome").items():
            learner.cycles[outcome] = learner.cycles.get(outcome, 0) + self._more(f"cycles/{outcome}", value)

    def _more(self, counter: str, value: float) -> int:
        """What a counter has gained since it was last seen; a restarted process counts from 0 again."""
        before = self._counted.get(counter, 0.0)
        self._counted[counter] = value
        return int(value - before if value >= before else value)

    async def _tell(self) -> None:
        async with self._seen:
            self._seen.notify_all()
