"""One thumbwheel to which everything happens: what one fault leaves behind, the next one meets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.world import World, world


@pytest.fixture(scope="package")
async def here(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("faults"), tiny_model) as world_:
        yield world_
