from __future__ import annotations

import pytest

from thumbwheel.errors import Conflict, LeaseLost
from thumbwheel.freeze import Brake, Tripped
from thumbwheel.lease import Lease
from thumbwheel.store import Store

FOUND = [Tripped("few_raters", "one of 8 cast 60 of 64 votes", ("t1-0", "t2-1")), Tripped("sudden_change", "9 an hour")]


async def lead(store: Store) -> Lease:
    lease = Lease(store, "test", 60)
    assert await lease.acquire()
    return lease


async def test_it_holds_until_it_is_released_and_that_batch_passes(store: Store) -> None:
    brake = Brake(store)
    assert await brake.frozen() is None
    await brake.freeze(await lead(store), "cycle-7", "digest 7", FOUND)
    frozen = await Brake(store).frozen()
    assert frozen is not None
    assert (frozen.cycle_id, frozen.digest, list(frozen.tripped)) == ("cycle-7", "digest 7", FOUND)
    assert not await brake.pardoned("digest 7")
    await brake.release(frozen)
    assert await brake.frozen() is None
    assert await brake.pardoned("digest 7")
    assert not await brake.pardoned("digest 8")
    with pytest.raises(Conflict):
        await brake.release(frozen)


async def test_who_has_seen_one_freeze_does_not_release_another(store: Store) -> None:
    brake, lease = Brake(store), await lead(store)
    await brake.freeze(lease, "cycle-7", "digest 7", FOUND[:1])
    seen = await brake.frozen()
    assert seen is not None
    await brake.freeze(lease, "cycle-8", "digest 8", FOUND[1:])
    with pytest.raises(Conflict):
        await brake.release(seen)
    assert await brake.frozen() is not None


async def test_a_learner_that_leads_no_more_freezes_nothing(store: Store) -> None:
    late = await lead(store)
    await late.release()
    await lead(store)
    with pytest.raises(LeaseLost):
        await Brake(store).freeze(late, "cycle-7", "digest 7", FOUND)
    assert await Brake(store).frozen() is None


async def test_a_mark_that_cannot_be_read_holds_and_can_be_released(store: Store) -> None:
    await store.call("SET", store.keys.frozen, b"rotten")
    frozen = await Brake(store).frozen()
    assert frozen is not None
    assert "cannot be read" in frozen.tripped[0].words
    await Brake(store).release(frozen)
    assert await Brake(store).frozen() is None
    assert not await Brake(store).pardoned("")
