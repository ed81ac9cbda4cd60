"""Callers who give up."""

from __future__ import annotations

import asyncio

import pytest

from tests.processes import eventually
from tests.rough import calls
from tests.rough.attackers import Attackers
from tests.rough.target import LONGEST_CALL, RECOVERY, Target, unharmed


@pytest.mark.parametrize(("count", "visits"), [(200, 20), pytest.param(10_000, 300, marks=pytest.mark.slow)])
async def test_cancels(server: Target, attackers: Attackers, count: int, visits: int) -> None:
    async with unharmed(server, visits):
        seen = await attackers.run(calls.cancel, server.address, count, 1)
        print(seen)
    assert seen.total() == count
    assert await server.metric("thumbwheel_requests_total", method="StreamChat", code="CANCELLED") > count / 2


@pytest.mark.parametrize(("count", "visits"), [(200, 20), pytest.param(10_000, 300, marks=pytest.mark.slow)])
async def test_expired_deadlines(server: Target, attackers: Attackers, count: int, visits: int) -> None:
    async with unharmed(server, visits):
        codes = await attackers.run(calls.expire, server.address, count, 1)
        print(codes)
    assert codes.keys() <= {"DEADLINE_EXCEEDED", "OK"}
    assert codes["OK"] <= count / 1000, "a random model ends its answer at one token in 50,000"
    assert await server.metric("thumbwheel_requests_total", method="Chat", code="DEADLINE_EXCEEDED") > count / 2


@pytest.mark.parametrize(("count", "visits"), [(10, 20), pytest.param(100, 300, marks=pytest.mark.slow)])
async def test_abandoned_streams(server: Target, attackers: Attackers, count: int, visits: int) -> None:
    """Their answers are sampled and wait for a reader, who holds no place; the calls end by the longest deadline."""
    before = await server.metric("thumbwheel_unread_streams_total")
    async with unharmed(server, visits):
        reading = asyncio.create_task(attackers.run(calls.abandon, server.address, count, LONGEST_CALL + RECOVERY))
        await eventually(lambda: all_unread(server, count), LONGEST_CALL)
        await eventually(lambda: given_up(server, before + count), LONGEST_CALL)
        assert not reading.done(), "the server did not end them: their callers left"
        await reading
    assert server.half.log.read_text().count("event=caller_stopped_reading") >= count


async def all_unread(server: Target, count: int) -> bool:
    """None is being sampled any more, the visitor's aside."""
    load = await server.load()
    return load.calls >= count and load.answers <= 1


async def given_up(server: Target, count: float) -> bool:
    return await server.metric("thumbwheel_unread_streams_total") >= count
