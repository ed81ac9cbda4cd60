"""Files torn and gone, records that rot, in a thumbwheel that runs: each is set aside, and everything else goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.world import MIN_VOTES, World, audit
from tests.processes import eventually
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import record_pb2 as pb


async def goes_on(here: World) -> None:
    """Another cycle is committed while people chat and rate."""
    cycles = await here.cycles()

    async def another() -> bool:
        return await here.cycles() > cycles

    await here.people.rated(MIN_VOTES)
    await eventually(another, 120)


def tear(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [tear, shutil.rmtree])
async def test_torn_and_missing_artifacts(here: World, spoil: Callable[[Path], object]) -> None:
    """All of them, in the middle of a cycle, and then everything is killed: the base is what is left."""
    registry, people, unanswered = Registry(here.store), here.people, here.people.unanswered
    async with people.about():
        await goes_on(here)
        live = await registry.live()
        assert live.path, "a version must be live, or there is nothing to tear"

        async def training() -> bool:
            return await asyncio.to_thread(here.learner.metric, "thumbwheel_learner_stage", stage="gate") == 1

        await eventually(training, 120)
        here.learner.kill()
        for version in (here.folder / "versions").iterdir():
            spoil(version)
        here.learner.start()
        for server in here.servers:  # one after the other: somebody answers all along
            server.kill()
            server.start()
            await server.ready()
            await asyncio.sleep(0.5)
        await goes_on(here)
    assert (await registry.get(live.name)).state == pb.VERSION_STATE_ROLLED_BACK
    assert people.unanswered == unanswered
    await here.settled()
    found = await audit(here)
    print(found)
    assert found.sound, found


async def test_corrupt_records_are_set_aside_and_counted(here: World) -> None:
    """A vote, a batch's manifest, a turn, a cycle and the live version, all at once."""
    store, keys, people = here.store, here.store.keys, here.people
    here.learner.kill()
    dead = await store.call("XLEN", keys.dead)
    async with people.about():
        await people.rated(MIN_VOTES)
        await store.call("XADD", keys.votes, "*", "v", b"rotten")
        _, response = next(reversed(people.acknowledged.values()))
        await store.call("HSET", keys.turn(response.rpartition("-")[0]), "t", b"rotten")
        await store.call("HSET", keys.manifest, "cycle_id", "cycle-0", "data", b"rotten")
        live = (await Registry(store).live()).name
        await store.call("HSET", keys.versions, live, b"rotten")
        here.learner.start()
        await here.learner.ready()
        await goes_on(here)
        assert here.learner.metric("thumbwheel_learner_dead_votes") == dead + 2
    await here.settled()
    found = await audit(here)
    print(found)
    assert found.sound, found
