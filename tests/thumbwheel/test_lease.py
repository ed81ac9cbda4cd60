from __future__ import annotations

import asyncio
from typing import Any

import pytest

from thumbwheel.errors import LeaseLost, StoreUnavailable
from thumbwheel.lease import Lease
from thumbwheel.store import Store


async def test_one_leads_at_a_time(store: Store) -> None:
    first, second = Lease(store, "a", 60), Lease(store, "b", 60)
    assert await first.acquire()
    assert not await second.acquire()
    assert second.token == 0
    await first.release()
    assert await second.acquire()
    assert second.token > first.token


async def test_two_learners_of_one_name_are_two(store: Store) -> None:
    first, second = Lease(store, "same", 60), Lease(store, "same", 60)
    assert await first.acquire()
    assert not await second.acquire()


async def test_acquiring_again_keeps_the_token(store: Store) -> None:
    lease = Lease(store, "a", 60)
    assert await lease.acquire()
    token = lease.token
    assert await lease.acquire()
    assert lease.token == token


async def test_a_silent_leader_is_replaced_and_told(store: Store, until: Any) -> None:
    silent, next_one = Lease(store, "a", 0.05), Lease(store, "b", 60)
    assert await silent.acquire()
    await until(next_one.acquire)
    assert next_one.token > silent.token
    with pytest.raises(LeaseLost):
        await silent.renew()
    await silent.release()  # not its own any more
    assert not await Lease(store, "c", 60).acquire()


async def test_a_lapsed_lease_that_nobody_took_can_be_renewed(store: Store, until: Any) -> None:
    lease = Lease(store, "a", 0.05)
    assert await lease.acquire()

    async def lapsed() -> bool:
        return await store.call("EXISTS", store.keys.lease) == 0

    await until(lapsed)
    await lease.renew()
    assert not await Lease(store, "b", 60).acquire()


async def test_a_lapsed_lease_that_somebody_had_meanwhile_cannot(store: Store, until: Any) -> None:
    lease, other = Lease(store, "a", 0.05), Lease(store, "b", 60)
    assert await lease.acquire()
    await until(other.acquire)
    await other.release()
    with pytest.raises(LeaseLost):
        await lease.renew()


async def test_holding_renews_it_before_it_lapses(store: Store, until: Any) -> None:
    lease = Lease(store, "a", 6)
    assert await lease.acquire()
    holder = asyncio.create_task(lease.hold())
    least = 6000

    async def renewed() -> bool:
        nonlocal least
        left = int(await store.call("PTTL", store.keys.lease))
        assert left > 0
        least = min(least, left)
        return least < 4500 < left

    await until(renewed)
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder


async def test_holding_ends_when_another_leads(store: Store) -> None:
    lease = Lease(store, "a", 0.05)
    assert await lease.acquire()
    await store.call("DEL", store.keys.lease)
    assert await Lease(store, "b", 60).acquire()
    with pytest.raises(LeaseLost):
        await lease.hold()


async def test_holding_outlives_an_absent_store(own_redis: Any, own_store: Store, until: Any) -> None:
    lease = Lease(own_store, "a", 0.3)
    assert await lease.acquire()
    holder = asyncio.create_task(lease.hold())
    own_redis.kill()

    async def noticed() -> bool:
        return own_store.failures > 0

    await until(noticed)
    with pytest.raises(StoreUnavailable):
        await lease.renew()
    own_redis.start()
    await lease.renew()
    assert not holder.done()
    assert lease.token == int(await own_store.call("GET", own_store.keys.fence))
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
