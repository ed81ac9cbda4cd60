"""kill -9 at random under load, and of the learner at each of its stages; two learners."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from time import monotonic

import pytest

from tests.faults.world import MIN_VOTES, RECOVERY, World, audit, nothing_lost
from tests.processes import Half, eventually, free_port
from tests.redis_process import RedisProcess

STAGES = {"collecting": 0.05, "reward_model": 0.1, "training": 2.0, "gate": 3.0, "committing": 0.02}
"""About how many seconds the learner spends in each."""


async def storm(here: World, kills: int, seed: int) -> dict[str, float]:
    """Kills at random, whatever else is still coming back; but never both servers at once, so that one can answer.

    Returns the longest time in which each part came back.
    """
    dice = random.Random(seed)
    longest: defaultdict[str, float] = defaultdict(float)
    coming: dict[int, asyncio.Task[None]] = {}

    async def come_back(part: Half | RedisProcess, after: float) -> None:
        await asyncio.sleep(after)  # so that the others meet its absence
        began = monotonic()
        name = part.name if isinstance(part, Half) else "redis"

        async def ready() -> bool:
            if not part.running:  # also one that found no store when it started: a supervisor starts it again
                await asyncio.to_thread(part.start)
            return isinstance(part, RedisProcess) or await asyncio.to_thread(part.answers)

        await eventually(ready, 60)
        longest[name] = max(longest[name], monotonic() - began)

    for _ in range(kills):
        part = dice.choice((here.redis, here.learner, dice.choice(here.servers)))
        for other in here.servers if part in here.servers else [part]:
            with suppress(KeyError):
                await coming[id(other)]
        await asyncio.sleep(dice.uniform(0.5, 1.2))  # no less: clients look for a server that was away every 0.3 s
        part.kill()
        coming[id(part)] = asyncio.create_task(come_back(part, dice.uniform(0, 1)))
    await asyncio.gather(*coming.values())
    return dict(longest)


@pytest.mark.parametrize(
    ("kills", "seed"), [(8, 1), *(pytest.param(40, seed, marks=pytest.mark.slow) for seed in range(2, 7))]
)
async def test_kills_at_random_lose_nothing(here: World, kills: int, seed: int) -> None:
    """Five storms of 40 are 200 kills."""
    people, cycles = here.people, await here.cycles()
    people.longest, before = 0.0, (people.answers, people.unanswered)
    async with people.about():
        came_back = await storm(here, kills, seed)
        await people.rated(MIN_VOTES)
    print(f"{kills} kills, {came_back=}, {people.longest=:.1f} s, {people.answers - before[0]} chats")
    assert (await nothing_lost(here)).cycles > cycles
    assert people.longest < RECOVERY
    assert people.unanswered == before[1], "with one of two servers killed at a time chat is always answered"


@dataclass(frozen=True)
class DieAt:
    """kill -9 of a learner by itself, so many seconds after it entered a stage, or as it leaves it if that is sooner.

    From outside nobody could hit a stage of milliseconds.
    """

    stage: str
    seconds: float

    def __call__(self) -> None:
        from learner import metrics

        enter: Callable[[str], None] = metrics.stage
        inside = False

        def entered(name: str) -> None:
            nonlocal inside
            if inside:
                die()
            enter(name)
            if name == self.stage:
                inside = True
                threading.Timer(self.seconds, die).start()

        metrics.stage = entered


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("stages", "times"),
    [(list(STAGES), 1), *(pytest.param([stage], 25, marks=pytest.mark.slow) for stage in STAGES)],
)
async def test_a_learner_killed_at_a_stage_repeats_its_cycle(here: World, stages: list[str], times: int) -> None:
    dice, cycles, answered = random.Random(times), await here.cycles(), here.people.unanswered
    here.learner.kill()
    async with here.people.about():
        for stage in stages * times:
            here.learner.start(DieAt(stage, dice.uniform(0, STAGES[stage])))
            await eventually(lambda: not here.learner.running, 120)
            assert here.learner.exit_code == -signal.SIGKILL, here.learner.log.read_text()[-3000:]
        here.learner.start()
        await here.learner.ready()
        await here.people.rated(MIN_VOTES)
    assert (await nothing_lost(here)).cycles > cycles
    assert here.people.unanswered == answered


async def test_of_two_learners_one_leads_and_the_other_takes_over(here: World) -> None:
    port = free_port()
    second = replace(
        here.learner,
        http_port=port,
        arguments=[*here.learner.arguments, "--set", f"learner.http_port={port}"],
        log=here.learner.log.with_name("second.log"),
        process=None,
    )
    second.start()
    try:
        await second.ready()
        async with here.people.about():

            async def committed(least: int) -> bool:
                return await here.cycles() >= least

            done = await here.cycles()
            await eventually(lambda: committed(done + 1), 120)
            leads = {learner.metric("thumbwheel_learner_leader"): learner for learner in (here.learner, second)}
            assert leads.keys() == {0, 1}
            leads[1].kill()
            began, done = monotonic(), await here.cycles()
            await eventually(lambda: leads[0].metric("thumbwheel_learner_leader"), RECOVERY)
            print(f"took over after {monotonic() - began:.1f} s")
            await eventually(lambda: committed(done + 1), 120)
        found = await audit(here)
        assert found.sound, found
    finally:
        second.stop()
        if not here.learner.running:
            here.learner.start()
            await here.learner.ready()
