"""What a change of weights costs those who are being answered, and how soon the next one is answered by the new ones.

Eight streams run all the time, in four ways one after the other, same model, same machine:

    adapters   thumbwheel as it comes: the version is loaded beside the old one, running streams end on theirs
    merged     thumbwheel with server.weights=merged: full weights, staged beside the old ones, exchanged in one step
    reload     vLLM's own: pause (requests are kept), reload_weights from a merged checkpoint, resume
    restart    the engine is closed and started on the merged checkpoint, in a process that has everything imported

For every swap:

    activation   from the call to the first token that the new weights answer a new request with
    worst gap    between two tokens of a running stream, from the call until a second after the activation
    rollback     from the call to its answer

beside the median gap between tokens in the same run, and beside the worst gap of windows in which somebody new is
answered too but nothing is swapped: a new prompt is computed in one step with everybody's next token. vLLM's own ways
answer some requests with halves of both: they have no versions, so nothing says which. A stream that was cut or
refused is counted as failed.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.adapters import publish, write_adapter
from bench.figures import Spread
from cli import base_model, fresh, preflight, programs, prompts
from cli.connection import Door, Services, connect
from server.engine import SamplingSpec, Weights
from server.engine_vllm import VllmEngine, start_engine
from thumbwheel.config import Config
from thumbwheel.errors import EngineDead, SetupError
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2, models_pb2
from thumbwheel_client.v1 import record_pb2 as pb

STREAMS = 8
TOKENS = 200
AFTER = 1.0
ROLLBACK_EVERY = 5
PLACES = 2 * STREAMS
"""Swaps come faster here than answers end: every stream may be on a version of its own."""

Report = Callable[[str, dict[str, Any]], None]


class Failed(Exception):
    """A stream that did not come to its end."""


class Way(Protocol):
    """A way to change weights."""

    def ask(self, prompt: str, tokens: int) -> AsyncGenerator[str, None]:
        """Yields the name of the weights that answer, whenever a token has come.

        Raises:
            Failed: it was refused or cut.
        """

    async def swap(self, name: str) -> None:
        """Makes a version's weights answer."""

    async def roll_back(self) -> bool:
        """To the weights before; false where there is no such thing."""


class Thumbwheel:
    """Either of our two, over gRPC."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def ask(self, prompt: str, tokens: int) -> AsyncGenerator[str, None]:
        version, finished = "", False
        request = chat_pb2.StreamChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
                sampling=pb.Sampling(max_tokens=tokens, temperature=1),
            )
        )
        try:
            async for event in self._services.chat.StreamChat(request, timeout=110):
                match event.WhichOneof("event"):
                    case "receipt":
                        version = event.receipt.version
                    case "delta":
                        yield version
                    case "finish":
                        finished = True
        except grpc.RpcError as error:
            raise Failed from error
        if not finished:
            raise Failed

    async def swap(self, name: str) -> None:
        await self._services.models.Promote(models_pb2.PromoteRequest(name=name), timeout=60)

    async def roll_back(self) -> bool:
        await self._services.models.Rollback(models_pb2.RollbackRequest(reason="bench"), timeout=60)
        return True


class Bare:
    """An engine alone, between checkpoints on disk."""

    def __init__(self, engine: VllmEngine, checkpoints: dict[str, Path]) -> None:
        self.engine = engine
        self._checkpoints = checkpoints
        self._serving = "base"
        self._numbers = itertools.count()

    async def ask(self, prompt: str, tokens: int) -> AsyncGenerator[str, None]:
        sampling = SamplingSpec(tokens, 1.0, 1.0, (), None)
        engine, ids = self.engine, self.engine.render([("user", prompt)])
        try:
            async with aclosing(
                engine.generate(f"bench-{next(self._numbers)}", ids, sampling, 1, Weights("base", 0, None))
            ) as chunks:
                async for _ in chunks:
                    yield self._serving
        except EngineDead as error:
            await asyncio.sleep(0.05)  # as a client would: not at once again
            raise Failed from error

    async def roll_back(self) -> bool:
        return False


class Reload(Bare):
    async def swap(self, name: str) -> None:
        llm = self.engine._llm
        await llm.pause_generation(mode="keep", clear_cache=False)
        await llm.collective_rpc("reload_weights", kwargs={"weights_path": str(self._checkpoints[name])})
        self._serving = name
        await llm.resume_generation()


class Restart(Bare):
    async def swap(self, name: str) -> None:
        await self.engine.close()
        self.engine = await start_engine(_bare(self._checkpoints[name]))
        self._serving = name


class Crowd:
    """Streams that run all the time, and when each of their tokens came."""

    def __init__(self, way: Way) -> None:
        self.gaps: list[float] = []
        """Seconds between any two tokens of a stream, in the order of their ends."""
        self.answers = self.failed = 0
        self._way = way
        self._questions = itertools.cycle(prompts.rated())

    async def run(self, stop: asyncio.Event) -> None:
        await asyncio.gather(*(self._stream(number, stop) for number in range(1, STREAMS + 1)))

    async def _stream(self, number: int, stop: asyncio.Event) -> None:
        tokens = TOKENS * number // STREAMS  # so that they do not all end, and begin again, in the same step
        while not stop.is_set():
            last = None
            try:
                async for _ in self._way.ask(next(self._questions), tokens):
                    now = time.perf_counter()
                    if last is not None:
                        self.gaps.append(now - last)
                    last = now
                self.answers += 1
            except Failed:
                self.failed += 1
            tokens = TOKENS


async def first_token(way: Way, name: str, prompt: str) -> float:
    """When a new request got its first token from a version."""
    while True:
        try:
            async with aclosing(way.ask(prompt, 1)) as answer:
                async for by in answer:
                    if by == name:
                        return time.perf_counter()
        except Failed:
            pass


async def measure(way: Way, names: list[str]) -> dict[str, Any]:
    """Swaps to each name in turn under running streams."""
    crowd, stop = Crowd(way), asyncio.Event()
    running = asyncio.create_task(crowd.run(stop))
    await asyncio.sleep(5)
    activation, rollback, worst, quiet = [], [], [], []
    live = "base"
    for number, name in enumerate(names, start=1):
        seen = len(crowd.gaps)
        await first_token(way, live, f"Hi, I am number {number}.")
        await asyncio.sleep(AFTER)
        quiet.append(max(crowd.gaps[seen:]))
        seen, began = len(crowd.gaps), time.perf_counter()
        await way.swap(name)
        activation.append(await first_token(way, name, "Hi") - began)
        await asyncio.sleep(AFTER)
        worst.append(max(crowd.gaps[seen:]))
        live = name
        if number % ROLLBACK_EVERY == 0:
            began = time.perf_counter()
            if await way.roll_back():
                rollback.append(time.perf_counter() - began)
                live = names[number - 2]
    stop.set()
    await running
    median = float(np.median(crowd.gaps))
    return {
        "swaps": len(names),
        "streams": STREAMS,
        "answers": crowd.answers,
        "failed_or_cut": crowd.failed,
        "median_gap_ms": 1e3 * median,
        "worst_gap_seconds": Spread.of(worst),
        "worst_gap_over_median": Spread.of([gap / median for gap in worst]),
        "worst_gap_over_median_without_swap": Spread.of([gap / median for gap in quiet]),
        "activation_seconds": Spread.of(activation),
        "rollback_seconds": Spread.of(rollback) if rollback else None,
    }


def _bare(model: Path) -> Config:
    """An engine without LoRA, as people run it who swap whole checkpoints."""
    return Config.model_validate({"model": {"path": str(model)}, "server": {"weights": "merged"}})


def write_merged(model: Path, folder: Path, seed: int) -> Path:
    """The checkpoint that an adapter of `bench.adapters` makes of the model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapter = write_adapter(model, folder.with_name(f"{folder.name}-adapter"), seed)
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    base = AutoModelForCausalLM.from_pretrained(model)
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(folder)
    return folder


@asynccontextmanager
async def serving(settings: Config) -> AsyncIterator[None]:
    """`thumbwheel serve`, ready."""
    settings.data_dir.mkdir()
    with (settings.data_dir / "server.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *programs.server_command(), env=programs.server_environment(settings), stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(120):
            while not await programs.http_ok("127.0.0.1", settings.server.http_port, "/readyz", tls=False):
                if process.returncode is not None:
                    raise SetupError((settings.data_dir / "server.log").read_text(encoding="utf-8")[-2000:])
                await asyncio.sleep(0.2)
        yield
    finally:
        process.terminate()
        await process.wait()


async def ours(model: Path, folder: Path, swaps: int, report: Report) -> None:
    """Adapters, then merged weights on the same Redis."""
    options = [
        f"model.path={model}",
        "learner.min_votes=1000000000",
        f"server.max_adapters={PLACES}",
        *figures.FREE_PORTS,
    ]
    names = [f"bench-{number}" for number in range(swaps)]
    async with fresh.running(folder, [word for item in options for word in ("--set", item)]) as instance:
        for weights in ("adapters", "merged"):
            async with AsyncExitStack() as stack:
                store = await Store.open(instance.redis_url, "default" if weights == "adapters" else weights)
                stack.push_async_callback(store.close)
                data = folder if weights == "adapters" else folder / weights
                door = Door(instance.grpc, instance.admin)
                if weights == "merged":
                    settings = preflight.take_ports(
                        Config.model_validate(
                            {
                                "data_dir": data,
                                "model": {"path": str(model)},
                                "redis": {"url": instance.redis_url, "namespace": weights},
                                "server": {
                                    "weights": weights,
                                    "max_adapters": PLACES,
                                    "grpc_port": 0,
                                    "admin_port": 0,
                                    "http_port": 0,
                                    "web_port": 0,
                                },
                                "learner": {"http_port": 0},
                            }
                        )
                    )
                    await stack.enter_async_context(serving(settings))
                    door = Door(f"127.0.0.1:{settings.server.grpc_port}", f"127.0.0.1:{settings.server.admin_port}")
                for number, name in enumerate(names):
                    await publish(Registry(store), data / "versions", model, name, seed=number)
                services = await stack.enter_async_context(connect(door))
                report(weights, await measure(Thumbwheel(services), names))


async def vllms_own(model: Path, folder: Path, swaps: int, report: Report) -> None:
    """Reloads, then restarts, between two checkpoints."""
    checkpoints = {f"merged-{number}": write_merged(model, folder / f"merged-{number}", number) for number in (0, 1)}
    names = list(itertools.islice(itertools.cycle(checkpoints), swaps))
    for kind in (Reload, Restart):
        way = kind(await start_engine(_bare(model)), checkpoints)
        report(kind.__name__.lower(), await measure(way, names))
        await way.engine.close()


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """All four ways."""
    model = Path(base_model.ensure(Config(), console).model.path)
    found: dict[str, Any] = {}

    def report(name: str, figures: dict[str, Any]) -> None:
        found[name] = figures
        console.print(name, {key: str(value) for key, value in figures.items()})

    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        # First, while this process has no threads of gRPC: its engines are forks.
        await vllms_own(model, Path(scratch), 2 if quick else 6, report)
        (Path(scratch) / "ours").mkdir()
        await ours(model, Path(scratch) / "ours", 5 if quick else 50, report)
    return found


def main() -> None:
    asked = figures.options("swap", __doc__.splitlines()[0])
    console = Console(highlight=False)
    figures.write(asked.json, "swap", asked.quick, uvloop.run(run(asked.quick, console)))


if __name__ == "__main__":
    main()
