"""kill -9 at random under load; power loss; the learner killed at each of its stages; two learners."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from tests.faults.world import World, audit, lose_power, world
from tests.processes import eventually
from thumbwheel.registry import Registry
from thumbwheel.store import Store

pytestmark = pytest.mark.slow

PARTS = ("redis", "learner", "one", "other")
STAGES = ("collecting", "reward_model", "ppo", "gate", "committing")


async def storm(here: World, kills: int, seed: int) -> list[tuple[str, float]]:
    """Kills one part after another, each while the rest goes on; returns what was killed and how long it was away."""
    dice, away = random.Random(seed), []
    for number in range(kills):
        part = PARTS[number % len(PARTS)] if kills < 20 else dice.choice(PARTS)
        await asyncio.sleep(dice.uniform(0.2, 2))
        here.kill(part)
        away.append((part, await here.ready(part)))
    return away


async def settled(here: World) -> None:
    """The learner has come to an end with what it could."""
    learned = here.learner

    async def idle() -> bool:
        return await asyncio.to_thread(learned.metric, "thumbwheel_learner_votes_waiting") < 24

    await eventually(idle, 120)


async def check_kills(here: World, kills: int, seed: int) -> None:
    await here.learner.ready()
    async with here.people.about():
        away = await storm(here, kills, seed)
        unanswered = here.people.unanswered
        votes = len(here.people.acknowledged)

        async def goes_on() -> bool:
            return len(here.people.acknowledged) > votes + 24

        await eventually(goes_on, 60)
    await settled(here)
    found = await audit(here.redis, here.people)
    print(f"{kills} kills, {away=}, {unanswered=}, longest={here.people.longest:.1f} s, {found}")
    assert found.sound, found
    assert found.trained > 0
    assert unanswered == 0, "with one of two servers killed at a time chat is always answered"


async def test_kills_at_random_lose_nothing(tmp_path: Path, tiny_model: Path) -> None:
    async with world(tmp_path, tiny_model) as here:
        await check_kills(here, kills=8, seed=1)


async def test_two_hundred_kills_lose_nothing(tmp_path: Path, tiny_model: Path) -> None:
    async with world(tmp_path, tiny_model) as here:
        await check_kills(here, kills=200, seed=2)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_learner_killed_at_a_stage_repeats_its_cycle(tmp_path: Path, tiny_model: Path, stage: str) -> None:
    async with world(tmp_path, tiny_model) as here:
        await here.learner.ready()
        async with here.people.about():
            for _ in range(25):

                async def reached() -> bool:
                    seen = await asyncio.to_thread(here.learner.metric, "thumbwheel_learner_stage", stage=stage)
                    return seen == 1

                await eventually(reached, 180)
                here.kill("learner")
                await here.ready("learner")
        await settled(here)
        found = await audit(here.redis, here.people)
        assert found.sound, found
        assert found.cycles > 0


@pytest.mark.parametrize("fsync", ["always", "everysec"])
async def test_a_power_loss_takes_no_acknowledged_vote(tmp_path: Path, tiny_model: Path, fsync: str) -> None:
    """With everysec and no WAITAOF it must take some, or this test would see nothing."""
    async with world(tmp_path, tiny_model, fsync=fsync) as here:
        if fsync == "everysec":
            here.redis.command("ACL", "SETUSER", "default", "-waitaof")
            here.kill("one")
            here.kill("other")
            await here.ready("one")
            await here.ready("other")
        async with here.people.about():
            for wave in range(1, 4):

                async def enough(least: int = 40 * wave) -> bool:
                    return len(here.people.acknowledged) >= least

                await eventually(enough, 120)
                lose_power(here.redis)
                here.start("redis")
        await settled(here)
        found = await audit(here.redis, here.people)
        if fsync == "always":
            assert found.sound, found
        else:
            assert found.lost, "nothing was lost: the simulated power loss is none"


async def test_of_two_learners_one_leads_and_the_other_takes_over(tmp_path: Path, tiny_model: Path) -> None:
    async with world(tmp_path, tiny_model) as here:
        second = type(here.learner)(
            "learner", here.learner.http_port + 1, [*here.learner.arguments, "--set",
            f"learner.http_port={here.learner.http_port + 1}"], tmp_path / "second.log",
        )  # fmt: skip
        second.start()
        try:
            await here.learner.ready()
            await second.ready()
            async with here.people.about():
                store = await Store.open(here.redis.url, "default")
                registry = Registry(store)

                async def cycles(least: int) -> bool:
                    return len(await registry.lineage(100)) >= least

                await eventually(lambda: cycles(1), 120)
                leads = [learner.metric("thumbwheel_learner_leader") for learner in (here.learner, second)]
                assert sorted(leads) == [0, 1]
                leader = here.learner if leads[0] else second
                leader.kill()
                done = len(await registry.lineage(100))
                await eventually(lambda: cycles(done + 1), 120)
                await store.close()
            found = await audit(here.redis, here.people)
            assert found.sound, found
        finally:
            second.stop()
