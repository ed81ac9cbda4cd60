from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from learner.journal import FOLDER, Journal
from learner.rollouts import Sampled


class Engine:
    """Never says the same thing twice."""

    def __init__(self) -> None:
        self.asked = 0

    async def sample(
        self, version: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, seed: int, n: int
    ) -> list[Sampled]:
        self.asked += 1
        return [
            Sampled(place, (self.asked, 7), (-1 / 3 - self.asked, -math.pi), "wörds", place == 0)
            for place in range(len(prompts))
            for _ in range(n)
        ]


async def test_what_was_sampled_is_not_sampled_again(tmp_path: Path) -> None:
    engine = Engine()
    first = await Journal(engine, tmp_path).sample("v1", [(1, 2), (3,)], max_tokens=4, seed=5, n=2)  # type: ignore[arg-type]
    again = Journal(engine, tmp_path)  # type: ignore[arg-type]
    assert await again.sample("v1", [[1, 2], [3]], max_tokens=4, seed=5, n=2) == first
    assert engine.asked == 1
    for version, prompts, seed, n in (("v2", [[1, 2], [3]], 5, 2), ("v1", [[1, 2]], 5, 2), ("v1", [[1, 2], [3]], 6, 2)):
        assert await again.sample(version, prompts, max_tokens=4, seed=seed, n=n) != first
    assert engine.asked == 4
    again.forget()
    assert await again.sample("v1", [[1, 2], [3]], max_tokens=4, seed=5, n=2) != first


async def test_a_torn_file_is_as_good_as_none(tmp_path: Path) -> None:
    engine = Engine()
    journal = Journal(engine, tmp_path)  # type: ignore[arg-type]
    await journal.sample("v1", [[1]], max_tokens=4, seed=5, n=1)
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:10])
    assert (await journal.sample("v1", [[1]], max_tokens=4, seed=5, n=1))[0].token_ids == (2, 7)
