"""Connections nobody should open."""

from __future__ import annotations

import pytest

from tests.rough import connections
from tests.rough.attackers import Attackers
from tests.rough.target import Target, unharmed


@pytest.mark.parametrize(
    ("count", "seconds", "visits"), [(100, 2, 20), pytest.param(1_000, 60, 300, marks=pytest.mark.slow)]
)
async def test_slow_connections(server: Target, attackers: Attackers, count: int, seconds: float, visits: int) -> None:
    doors = [server.address, server.admin, server.http]
    async with unharmed(server, visits):
        ends = await attackers.run(connections.dawdle, doors, count, seconds)
    print(ends)
    assert ends.total() == count


@pytest.mark.parametrize("kind", ["pings", "settings", "resets"])
@pytest.mark.parametrize(
    ("count", "frames", "visits"), [(3, 500, 20), pytest.param(30, 10_000, 300, marks=pytest.mark.slow)]
)
async def test_floods(server: Target, attackers: Attackers, kind: str, count: int, frames: int, visits: int) -> None:
    async with unharmed(server, visits):
        ends = await attackers.run(connections.flood, server.address, kind, count, frames)
    print(kind, ends)
    assert ends.total() == count
    if kind == "pings":
        assert not ends["borne"]
