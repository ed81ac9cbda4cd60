"""One server for all that a server should shrug off."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.redis_process import RedisProcess
from tests.rough.attackers import Attackers
from tests.rough.target import Target, target, warm


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncIterator[Target]:
    folder = tmp_path_factory.mktemp("rough")
    redis = RedisProcess(folder)
    redis.start()
    async with target(folder, tiny_model, redis.url) as server:
        await warm(server)
        yield server
    redis.stop()


@pytest.fixture(scope="session")
def attackers() -> Iterator[Attackers]:
    attackers = Attackers()
    yield attackers
    attackers.leave()
