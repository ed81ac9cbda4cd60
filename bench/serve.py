"""How much of the bare engine's speed reaches a client.

Three ways to the same answers, one after the other and again, in one run:

    engine      vLLM's AsyncLLM in this process, with our engine settings
    thumbwheel  our server, over gRPC
    openai      vLLM's own OpenAI server, over HTTP

each with the base and with an adapter, at several numbers of streams. A stream asks for its next answer when the last
one has ended. All three keep their engines for the whole run; those that are not being asked do nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.adapters import publish, write_adapter
from bench.figures import Spread
from cli import base_model, fresh, prompts
from cli.connection import Door, Services, connect
from server.engine import Weights
from server.engine_vllm import VllmEngine, start_engine
from thumbwheel.config import Config
from thumbwheel.errors import SetupError
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb

MAX_TOKENS = 64
ADAPTER = "bench"
PLACES = 32


@dataclass(frozen=True, slots=True)
class Load:
    """Streams at once, and answers in all."""

    streams: int
    answers: int


FULL = (Load(1, 4), Load(4, 12), Load(16, 32), Load(32, 64))
QUICK = (Load(1, 2), Load(16, 16))


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    seed: int


@dataclass(slots=True)
class Timing:
    """One answer as its client saw it; seconds."""

    first: float
    per_token: float
    tokens: int


@dataclass(slots=True)
class Round:
    """One target under one load."""

    seconds: float
    cpu_seconds: float
    answers: list[Timing] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return sum(answer.tokens for answer in self.answers) / self.seconds

    def figures(self) -> dict[str, float]:
        first = [1e3 * answer.first for answer in self.answers]
        each = [1e3 * answer.per_token for answer in self.answers if answer.tokens > 1]
        return {
            "tokens_per_second": self.tokens_per_second,
            "first_token_ms_p50": float(np.percentile(first, 50)),
            "first_token_ms_p99": float(np.percentile(first, 99)),
            "per_token_ms_p50": float(np.percentile(each, 50)),
            "per_token_ms_p99": float(np.percentile(each, 99)),
            "server_cpu_seconds": self.cpu_seconds,
        }


class Target(Protocol):
    """A way to answers."""

    @property
    def name(self) -> str: ...

    @property
    def pids(self) -> Sequence[int]:
        """The processes between client and engine."""

    def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        """Yields the tokens so far whenever something has come."""


class Engine:
    """AsyncLLM, asked by whoever is in its process."""

    name = "engine"

    def __init__(self, engine: VllmEngine, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        self._render = engine.render
        self._llm: Any = engine._llm  # bare: what stands around it is what is measured
        self._lora = LoRARequest(ADAPTER, 1, str(folder))
        self.pids = (os.getpid(),)
        self._number = itertools.count()

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=1.0,
            seed=question.seed,
            logprobs=0,
            output_kind=RequestOutputKind.DELTA,
        )
        ids = self._render([("user", question.prompt)])
        tokens = 0
        async for output in self._llm.generate(
            {"prompt_token_ids": ids},
            sampling,
            f"bench-{next(self._number)}",
            lora_request=self._lora if adapter else None,
        ):
            tokens += sum(len(completion.token_ids) for completion in output.outputs)
            yield tokens


class Thumbwheel:
    """Our server over gRPC."""

    name = "thumbwheel"

    def __init__(self, services: Services, pid: int) -> None:
        self._services = services
        self.pids = (pid,)

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        request = chat_pb2.StreamChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=question.prompt)],
                sampling=pb.Sampling(max_tokens=MAX_TOKENS, temperature=1, seed=question.seed),
                version=ADAPTER if adapter else "base",
            )
        )
        tokens = 0
        async for event in self._services.chat.StreamChat(request, timeout=110):
            match event.WhichOneof("event"):
                case "delta":
                    tokens += 1
                    yield tokens
                case "finish":
                    yield event.finish.usage.completion_tokens


class OpenAi:
    """vLLM's OpenAI server over HTTP, as `python -m vllm.entrypoints.openai.api_server` starts it."""

    name = "openai"

    def __init__(self, session: Any, address: str, model: str, pid: int) -> None:
        self._session = session
        self._url = f"http://{address}/v1/chat/completions"
        self._model = model
        self.pids = (pid,)

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        body = {
            "model": ADAPTER if adapter else self._model,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "seed": question.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tokens = 0
        async with self._session.post(self._url, json=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise SetupError(f"vLLM's OpenAI server: {chunk['error']}")
                if chunk.get("usage"):
                    yield chunk["usage"]["completion_tokens"]
                elif chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                    tokens += 1
                    yield tokens


async def measure(target: Target, load: Load, adapter: bool, first_seed: int) -> Round:
    """Asks the same questions of every target."""
    asked = prompts.rated()
    questions = iter([Question(asked[i % len(asked)], first_seed + i) for i in range(load.answers)])
    timings: list[Timing] = []

    async def stream() -> None:
        for question in questions:
            began, first, tokens = time.perf_counter(), 0.0, 0
            last = began
            async for tokens in target.ask(question, adapter):  # noqa: B007 - the last one counts
                last = time.perf_counter()
                first = first or last - began
            timings.append(Timing(first, (last - began - first) / max(1, tokens - 1), tokens))

    cpu, began = _cpu_seconds(target.pids), time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(load.streams)))
    return Round(time.perf_counter() - began, _cpu_seconds(target.pids) - cpu, timings)


def _cpu_seconds(pids: Sequence[int]) -> float:
    """User and system time of the processes, all threads."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def targets(model: Path, folder: Path) -> AsyncIterator[list[Target]]:
    """All three, ready, with the same adapter. The engine of this process first: it is a fork, and gRPC has threads."""
    import aiohttp

    adapter = write_adapter(model, folder / "adapter", seed=1)
    sets = [f"model.path={model}", f"server.max_sequences={PLACES}", "learner.min_votes=1000000"]
    async with AsyncExitStack() as stack:
        engine = await start_engine(
            Config.model_validate({"model": {"path": str(model)}, "server": {"max_sequences": PLACES}})
        )
        stack.push_async_callback(engine.close)
        await engine.load(Weights(ADAPTER, 1, adapter))
        (folder / "thumbwheel").mkdir()
        ours = await stack.enter_async_context(
            fresh.running(
                folder / "thumbwheel", [word for item in (*sets, *figures.FREE_PORTS) for word in ("--set", item)]
            )
        )
        store = await Store.open(ours.redis_url, "default")
        stack.push_async_callback(store.close)
        await publish(Registry(store), folder / "thumbwheel" / "versions", model, ADAPTER, seed=1)
        address, pid = await stack.enter_async_context(openai_server(model, adapter, folder))
        services = await stack.enter_async_context(connect(Door(ours.grpc, ours.admin)))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield [
            Engine(engine, adapter),
            Thumbwheel(services, _child(ours.pid, "server")),
            OpenAi(session, address, str(model), pid),
        ]


@asynccontextmanager
async def openai_server(model: Path, adapter: Path, folder: Path) -> AsyncIterator[tuple[str, int]]:
    """Its address and process, once it answers. No prompt is cut: a seeded one that is ends stock vLLM on a CPU."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--model", str(model), "--dtype", "float32", "--enforce-eager",
        "--max-num-batched-tokens", "2048",
        "--max-model-len", "2048", "--max-num-seqs", str(PLACES), "--block-size", "32",
        "--kv-cache-memory-bytes", str(Config().server.kv_cache_bytes), "--enable-lora", "--max-loras", "2",
        "--max-lora-rank", "16", "--lora-modules", f"{ADAPTER}={adapter}",
    ]  # fmt: skip
    with (folder / "openai.log").open("wb") as log:
        environment = os.environ | {"VLLM_NO_USAGE_STATS": "1", "GOMP_SPINCOUNT": "3000"}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=log, stderr=asyncio.subprocess.STDOUT, env=environment
        )
    try:
        async with asyncio.timeout(300):
            while not await _answers(port):
                if process.returncode is not None:
                    raise SetupError(f"vLLM's OpenAI server ended: see {folder / 'openai.log'}")
                await asyncio.sleep(0.5)
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        await process.wait()


async def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.0\r\n\r\n")
        status = await reader.readline()
        writer.close()
        return status.split()[1:2] == [b"200"]
    return False


def _child(parent: int, module: str) -> int:
    """The process that `thumbwheel up` runs a module in."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"-m" in words and words[words.index(b"-m") + 1] == module.encode():
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if int(fields[1]) == parent:
                    return int(entry.name)
    raise LookupError(f"process {parent} has no child that runs {module}")


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """All rounds, and what they come to."""
    model = Path(base_model.ensure(Config(), console).model.path)
    loads, runs = (QUICK, 1) if quick else (FULL, 3)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        async with targets(model, Path(scratch)) as ways:
            for target in ways:  # each one's first answers are slow
                for adapter in (False, True):
                    await measure(target, Load(2, 2), adapter, first_seed=1)
            for adapter, load in itertools.product((False, True), loads):
                rounds: dict[str, list[Round]] = {target.name: [] for target in ways}
                for number in range(runs):
                    for target in ways[number % len(ways) :] + ways[: number % len(ways)]:
                        # Stock LoRA on a CPU takes minutes for what the others do in seconds: once is enough.
                        if target.name == "openai" and adapter and number:
                            continue
                        rounds[target.name].append(await measure(target, load, adapter, first_seed=1000 * number))
                title = f"{'adapter' if adapter else 'base'}, {load.streams} streams"
                report[title] = _compare(rounds)
                console.print(title, {name: str(spread) for name, spread in report[title]["ratios"].items()})
    return report


def _compare(rounds: dict[str, list[Round]]) -> dict[str, Any]:
    """Figures of every target, and thumbwheel's beside the others', run by run."""
    found = {name: [each.figures() for each in done] for name, done in rounds.items()}
    ours = found["thumbwheel"]
    return {
        "ratios": {
            f"tokens_per_second/{other}": _ratio(ours, found[other], "tokens_per_second")
            for other in found
            if other != "thumbwheel"
        },
        "added_first_token_ms": {
            key: Spread.of([a[key] - b[key] for a, b in zip(ours, found["engine"], strict=True)])
            for key in ("first_token_ms_p50", "first_token_ms_p99")
        },
        "figures": {
            name: {key: Spread.of([each[key] for each in done]) for key in done[0]} for name, done in found.items()
        },
    }


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]], key: str) -> Spread:
    return Spread.of([a[key] / b[key] for a, b in zip(ours, theirs, strict=False)])


def main() -> None:
    asked = figures.options("serve", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = uvloop.run(run(asked.quick, console))
    figures.write(asked.json, "serve", asked.quick, results)


if __name__ == "__main__":
    main()
