"""Fresh answers on disk until their cycle is committed.

An engine does not say the same thing twice to the last bit: what runs beside a sample changes the order of its sums.
A learner that is killed and repeats its cycle comes to the same weights, so it takes up the answers that were sampled
from them, and comes to the same version in the end, bit for bit; sampling, the longest part, is not done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

from learner.rollouts import Rollouts, Sampled

FOLDER = ".sampled"
"""Below the root of the versions, and no version's name."""


class Journal:
    """Asks the engine once for what is asked for again."""

    def __init__(self, rollouts: Rollouts, root: Path) -> None:
        self._rollouts, self._folder = rollouts, root / FOLDER

    async def sample(
        self, version: str, prompts: Sequence[Sequence[int]], *, max_tokens: int, seed: int, n: int
    ) -> list[Sampled]:
        """As `Rollouts.sample`. A version's name carries the digest of its weights, so no other weights' are found."""
        request = repr((version, [tuple(prompt) for prompt in prompts], max_tokens, seed, n))
        file = self._folder / f"{hashlib.sha256(request.encode()).hexdigest()}.json"
        known = await asyncio.to_thread(_read, file)
        if known is None:
            known = await self._rollouts.sample(version, prompts, max_tokens=max_tokens, seed=seed, n=n)
            await asyncio.to_thread(_write, file, known)
        return known

    def forget(self) -> None:
        """All of it."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _read(file: Path) -> list[Sampled] | None:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [Sampled(prompt, tuple(ids), tuple(logp), text, stopped) for prompt, ids, logp, text, stopped in rows]
    except (OSError, ValueError):  # not there, or torn by a power cut
        return None


def _write(file: Path, found: Sequence[Sampled]) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([astuple(one) for one in found]), encoding="utf-8")
    unfinished.replace(file)
