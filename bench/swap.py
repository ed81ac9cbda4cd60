"""What a swap costs those who are being answered, and how soon the next one is answered by the new version.

Eight streams run all the time. Two versions take turns at being live; for every promotion:

    activation   from the call to the first token that the new version answers a new request with
    worst gap    between two tokens of a running stream, from the call until a second after the activation
    rollback     from the call to its answer

beside the median gap between tokens in the same run.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.adapters import publish
from bench.figures import Spread
from cli import base_model, fresh, prompts
from cli.connection import Door, Services, connect
from thumbwheel.config import Config
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

STREAMS = 8
TOKENS = 200
AFTER = 1.0


class Crowd:
    """Streams that run all the time, and when each of their tokens came."""

    def __init__(self, services: Services) -> None:
        self.gaps: list[tuple[float, float]] = []
        """(when it ended, seconds) of every pause between two messages of a stream."""
        self.failed = 0
        self._services = services
        self._questions = itertools.cycle(prompts.rated())

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(*(self._stream(stop) for _ in range(STREAMS)))

    async def _stream(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            last = None
            finished = False
            async for event in self._services.chat.StreamChat(_question(next(self._questions), TOKENS), timeout=110):
                now = time.perf_counter()
                if last is not None and event.WhichOneof("event") == "delta":
                    self.gaps.append((now, now - last))
                if event.WhichOneof("event") == "delta":
                    last = now
                finished = event.WhichOneof("event") == "finish"
            self.failed += not finished


def _question(prompt: str, tokens: int) -> chat_pb2.StreamChatRequest:
    return chat_pb2.StreamChatRequest(
        input=chat_pb2.ChatInput(
            messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
            sampling=pb.Sampling(max_tokens=tokens, temperature=1),
        )
    )


async def first_token(services: Services, version: str) -> float:
    """When a new request got its first token from `version`."""
    while True:
        answered_by = ""
        async for event in services.chat.StreamChat(_question("Hi", 1), timeout=110):
            match event.WhichOneof("event"):
                case "receipt":
                    answered_by = event.receipt.version
                case "finish":
                    break
        if answered_by == version:
            return time.perf_counter()


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """Swaps under running streams."""
    swaps = 4 if quick else 50
    model = Path(base_model.ensure(Config(), console).model.path)
    sets = [f"model.path={model}", "learner.min_votes=1000000000", *figures.FREE_PORTS]
    activation, rollback, worst = [], [], []
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        folder = Path(scratch)
        options = [word for item in sets for word in ("--set", item)]
        async with fresh.running(folder, options) as instance, connect(Door(instance.grpc, instance.admin)) as services:
            store = await Store.open(instance.redis_url, "default")
            for number in range(swaps):
                await publish(Registry(store), folder / "versions", model, f"bench-{number}", seed=number)
            crowd, stop = Crowd(services), asyncio.Event()
            running = asyncio.create_task(crowd.run(stop))
            await asyncio.sleep(5)
            for number in range(swaps):
                began = time.perf_counter()
                await services.models.Promote(models_pb2.PromoteRequest(name=f"bench-{number}"), timeout=30)
                activation.append(await first_token(services, f"bench-{number}") - began)
                await asyncio.sleep(AFTER)
                worst.append(max(gap for at, gap in crowd.gaps if at >= began))
                if number % 5 == 4:
                    began = time.perf_counter()
                    await services.models.Rollback(models_pb2.RollbackRequest(reason="bench"), timeout=30)
                    rollback.append(time.perf_counter() - began)
            stop.set()
            await running
            await store.close()
    gaps = [gap for _, gap in crowd.gaps]
    median = float(np.median(gaps))
    return {
        "streams": STREAMS,
        "failed_or_cut": crowd.failed,
        "median_gap_ms": 1e3 * median,
        "worst_gap_over_median": Spread.of([gap / median for gap in worst]),
        "activation_seconds": Spread.of(activation),
        "rollback_seconds": Spread.of(rollback) if rollback else None,
    }


def main() -> None:
    asked = figures.options("swap", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = uvloop.run(run(asked.quick, console))
    for name, found in results.items():
        console.print(name, str(found))
    figures.write(asked.json, "swap", asked.quick, results)


if __name__ == "__main__":
    main()
