"""What a caller may use is counted in the store: for all servers together, and not at all while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.access import Caller
from server.limits import Budgets
from thumbwheel.errors import Overloaded
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import Limits


def caller(budget: str = "key:1", **limits: int) -> Caller:
    return Caller("rater", "tenant", frozenset(), budget, Limits(**limits))


@pytest.fixture
async def servers(redis_url: str) -> AsyncIterator[list[Budgets]]:
    """Two servers' budgets over one store."""
    stores = [await Store.open(redis_url, "limits") for _ in range(2)]
    yield [Budgets(store, longest=60) for store in stores]
    for store in stores:
        await store.close()


async def use(budgets: Budgets, who: Caller, tokens: int = 10, used: int | None = None) -> None:
    async with budgets.chat(who, tokens) as spending:
        spending.used = tokens if used is None else used


async def test_without_limits_nothing_is_counted(redis_url: str, servers: list[Budgets]) -> None:
    for _ in range(20):
        await use(servers[0], caller())
        await servers[0].request(caller())
    store = await Store.open(redis_url, "limits")
    assert await store.call("KEYS", "*limits*") == []
    await store.close()


async def test_requests_in_a_minute_on_all_servers_together(servers: list[Budgets]) -> None:
    who = caller(requests_per_minute=6)
    for number in range(6):
        await use(servers[number % 2], who)
    for server in servers:
        with pytest.raises(Overloaded, match="6 calls a minute") as refusal:
            await use(server, who)
        assert 0 < refusal.value.retry_after <= 10, "a sixth of a minute earns one"
        with pytest.raises(Overloaded):
            await server.request(who)
    await use(servers[0], caller("key:2", requests_per_minute=6))


async def test_requests_are_earned_again(servers: list[Budgets]) -> None:
    who = caller(requests_per_minute=600)
    refused = 0
    for _ in range(640):
        try:
            await servers[0].request(who)
        except Overloaded as error:
            refused += 1
            await asyncio.sleep(error.retry_after)
            await servers[0].request(who)
    assert refused > 0


async def test_chats_at_once(servers: list[Budgets]) -> None:
    who = caller(concurrent_chats=2)
    async with servers[0].chat(who, 1), servers[1].chat(who, 1):
        with pytest.raises(Overloaded, match="2 chat calls at once"):
            await use(servers[1], who)
        await servers[0].request(who)
    for server in servers:
        await use(server, who)


async def test_a_call_that_is_cancelled_gives_its_place_back(servers: list[Budgets]) -> None:
    who = caller(concurrent_chats=1)
    begun = asyncio.Event()

    async def chat() -> None:
        async with servers[0].chat(who, 1):
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(chat())
    await begun.wait()
    task.cancel()
    await asyncio.wait((task,))
    await use(servers[0], who)


async def test_a_place_of_a_server_that_died_lapses(redis_url: str) -> None:
    store = await Store.open(redis_url, "limits")
    who = caller(concurrent_chats=1)
    left = Budgets(store, longest=0.2).chat(who, 1)
    await left.__aenter__()  # and never ends
    budgets = Budgets(store, longest=60)
    async with asyncio.timeout(5):
        while True:
            try:
                await use(budgets, who)
                break
            except Overloaded:
                await asyncio.sleep(0.02)
    await left.__aexit__(None, None, None)
    await store.close()


async def test_tokens_that_were_not_used_come_back(servers: list[Budgets]) -> None:
    who = caller(tokens_per_minute=100)
    for _ in range(8):
        await use(servers[0], who, tokens=20, used=10)
    with pytest.raises(Overloaded, match="100 tokens a minute") as refusal:
        await use(servers[1], who, tokens=90)
    assert 0 < refusal.value.retry_after <= 60
    await use(servers[1], who, tokens=10)


async def test_a_call_beyond_a_whole_minute_is_told_so(servers: list[Budgets]) -> None:
    with pytest.raises(Overloaded, match="lower max_tokens"):
        await use(servers[0], caller(tokens_per_minute=100), tokens=101)


async def test_a_refused_call_costs_nothing(servers: list[Budgets]) -> None:
    who = caller(requests_per_minute=2, tokens_per_minute=100)
    for _ in range(5):
        with pytest.raises(Overloaded):
            await use(servers[0], who, tokens=101)
    await use(servers[0], who, tokens=50)
    await use(servers[0], who, tokens=50)


async def test_chat_goes_on_without_the_store(own_redis: Any) -> None:
    store = await Store.open(own_redis.url, "limits")
    budgets, who = Budgets(store, longest=60), caller(requests_per_minute=1, concurrent_chats=1, tokens_per_minute=10)
    await use(budgets, who)
    own_redis.kill()
    for _ in range(3):
        await use(budgets, who)
    await store.close()
