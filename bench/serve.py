"""How much of the bare engine's speed reaches a client.

Three ways to the same answers, one after the other and again, in one run:

    engine      vLLM's AsyncLLM in this process, with our engine settings
    thumbwheel  our server, over gRPC
    openai      vLLM's own OpenAI server, over HTTP

each with the base and with an adapter, at several numbers of streams. A stream asks for its next answer when the last
one has ended. What comes before the first token is also measured alone, by many short answers of one stream, for which
engine and thumbwheel take turns question by question.

What makes the three comparable:

    answers     the same prompts, seeds and settings in the same order, so the same tokens where sums round alike;
                `tokens` of every target is in the report, and unequal work shows
    rest        all three keep their engines for the whole run, and vLLM's default executor spins for a second after
                its last step: a round begins when the machine is idle. `other_cpu_seconds` is what anybody else took
    others      a round in which somebody else was at work is asked again; every prompt is shorter than two blocks of
                the prefix cache, so having been asked before makes it no cheaper
    order       is turned round in every run
    collector   what is loaded before the first round stays out of garbage collections here, as in our server

`server_cpu_seconds` are those of the process that clients talk to. Of `engine` this is the benchmark itself, which is
client and server in one; thumbwheel's and openai's clients are not in it. vLLM's processes below it are in
`engine_cpu_seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
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
from thumbwheel import config
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Short rounds and many: the machine's own speed drifts by more than what is looked for.

    `openai` rounds only, with base and adapter: it is further away, and slow. `pairs` of first tokens in each of
    `first_token_runs`.
    """

    loads: Sequence[Load]
    runs: int
    openai: tuple[int, int]
    pairs: int
    first_token_runs: int


FULL = Plan((Load(1, 2), Load(4, 4), Load(16, 16), Load(32, 32)), runs=4, openai=(2, 1), pairs=100, first_token_runs=2)
QUICK = Plan((Load(1, 2), Load(16, 16)), runs=1, openai=(1, 1), pairs=20, first_token_runs=1)

DISTURBED = 0.15
"""Of a core: what others take in a round that does not count and is asked again, a few times at most. Idle engines, the
store, the learner and the system take a third of it."""
TRIES = 3


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    seed: int
    max_tokens: int = MAX_TOKENS


@dataclass(slots=True)
class Timing:
    """One answer as its client saw it; seconds."""

    first: float
    per_token: float
    tokens: int
    messages: int


@dataclass(slots=True)
class Round:
    """One target under one load."""

    seconds: float
    server_cpu: float
    engine_cpu: float
    other_cpu: float
    answers: list[Timing] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(answer.tokens for answer in self.answers)

    @property
    def messages(self) -> int:
        return sum(answer.messages for answer in self.answers)

    def figures(self) -> dict[str, float]:
        first = [1e3 * answer.first for answer in self.answers]
        each = [1e3 * answer.per_token for answer in self.answers if answer.tokens > 1]
        return {
            "tokens": self.tokens,
            "tokens_per_second": self.tokens / self.seconds,
            "first_token_ms_p50": float(np.percentile(first, 50)),
            "first_token_ms_p99": float(np.percentile(first, 99)),
            "per_token_ms_p50": float(np.percentile(each, 50)),
            "per_token_ms_p99": float(np.percentile(each, 99)),
            "server_cpu_seconds": self.server_cpu,
            "engine_cpu_seconds": self.engine_cpu,
            "other_cpu_seconds": self.other_cpu,
        }


class Target(Protocol):
    """A way to answers."""

    @property
    def name(self) -> str: ...

    @property
    def pid(self) -> int:
        """The process between client and engine."""

    @property
    def engine_pids(self) -> Sequence[int]: ...

    def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        """Yields the tokens so far whenever text has come, and at the end."""


class Engine:
    """AsyncLLM, asked by whoever is in its process."""

    name = "engine"

    def __init__(self, engine: VllmEngine, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        self._render = engine.render
        self._llm: Any = engine._llm  # bare: what stands around it is what is measured
        self._lora = LoRARequest(ADAPTER, 1, str(folder))
        self.pid = os.getpid()
        self.engine_pids = engine_pids(self.pid)
        self._number = itertools.count()

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        sampling = SamplingParams(
            max_tokens=question.max_tokens,
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
            [completion] = output.outputs
            tokens += len(completion.token_ids)
            if completion.text or completion.finish_reason:
                yield tokens


class Thumbwheel:
    """Our server over gRPC."""

    name = "thumbwheel"

    def __init__(self, services: Services, pid: int) -> None:
        self._services = services
        self.pid = pid
        self.engine_pids = engine_pids(pid)

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        request = chat_pb2.StreamChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=question.prompt)],
                sampling=pb.Sampling(max_tokens=question.max_tokens, temperature=1, seed=question.seed),
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
        self.pid = pid
        self.engine_pids = engine_pids(pid)

    async def ask(self, question: Question, adapter: bool) -> AsyncIterator[int]:
        body = {
            "model": ADAPTER if adapter else self._model,
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": question.max_tokens,
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
    for _ in range(TRIES):
        done = await _round(target, load, adapter, first_seed)
        if done.other_cpu < DISTURBED * done.seconds:
            break
    return done


async def _round(target: Target, load: Load, adapter: bool, first_seed: int) -> Round:
    questions = iter(ask_for(load.answers, first_seed))
    timings: list[Timing] = []

    async def stream() -> None:
        for question in questions:
            timings.append(await _timed(target, question, adapter))

    await rest()
    before = _cpu(target)
    began = time.perf_counter()
    await asyncio.gather(*(stream() for _ in range(load.streams)))
    seconds = time.perf_counter() - began
    server, engine, own, machine = (now - then for now, then in zip(_cpu(target), before, strict=True))
    return Round(seconds, server, engine, max(0.0, machine - server - engine - own), timings)


def ask_for(answers: int, first_seed: int, max_tokens: int = MAX_TOKENS) -> list[Question]:
    asked = prompts.rated()
    return [Question(asked[i % len(asked)], first_seed + i, max_tokens) for i in range(answers)]


async def _timed(target: Target, question: Question, adapter: bool) -> Timing:
    began, first, tokens, messages = time.perf_counter(), 0.0, 0, 0
    last = began
    async for tokens in target.ask(question, adapter):  # noqa: B007 - the last one counts
        last = time.perf_counter()
        first = first or last - began
        messages += 1
    return Timing(first, (last - began - first) / max(1, tokens - 1), tokens, messages)


async def first_tokens(ours: Target, bare: Target, adapter: bool, first_seed: int, answers: int) -> dict[str, float]:
    """Milliseconds to the first token of one stream, in pairs: the same question, one after the other."""
    await rest()
    pairs: list[tuple[float, float]] = []
    for number, question in enumerate(ask_for(answers, first_seed, max_tokens=2)):
        order = (ours, bare) if number % 2 else (bare, ours)
        took = {target.name: 1e3 * (await _timed(target, question, adapter)).first for target in order}
        pairs.append((took[ours.name], took[bare.name]))
    mine, theirs = np.array(pairs).T  # (answers,)
    found = {}
    for percent in (50, 99):
        found[f"thumbwheel_p{percent}"] = float(np.percentile(mine, percent))
        found[f"engine_p{percent}"] = float(np.percentile(theirs, percent))
        found[f"added_p{percent}"] = found[f"thumbwheel_p{percent}"] - found[f"engine_p{percent}"]
        found[f"pairs_p{percent}"] = float(np.percentile(mine - theirs, percent))
    return found


async def rest() -> None:
    """Returns when the machine has been idle for a moment; after half a minute it is as idle as it will get."""
    for _ in range(60):
        before = _machine_cpu()
        await asyncio.sleep(0.5)
        if _machine_cpu() - before < 0.05:
            return


def _cpu(target: Target) -> tuple[float, float, float, float]:
    """CPU seconds until now of the server, of its engine, of this process if it is not the server, of the machine."""
    own = 0.0 if target.pid == os.getpid() else process_cpu(os.getpid())
    return process_cpu(target.pid), sum(map(process_cpu, target.engine_pids)), own, _machine_cpu()


def process_cpu(pid: int) -> float:
    """User and system time, all threads."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _machine_cpu() -> float:
    """What all processes took together; what the machine itself had to wait for another is in it."""
    with Path("/proc/stat").open(encoding="utf-8") as file:
        user, nice, system, _idle, _waits, *interrupts = (int(word) for word in file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def engine_pids(server: int) -> list[int]:
    """vLLM's processes below a server."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            parents[pid] = int(_stat(pid)[1])
            if (entry / "cmdline").read_bytes().startswith(b"VLLM::"):
                named.append(pid)

    def below(pid: int) -> bool:
        return pid == server or (pid in parents and below(parents[pid]))

    return [pid for pid in named if below(pid)]


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()


@asynccontextmanager
async def pair(model: Path, folder: Path, sets: Sequence[str] = ()) -> AsyncIterator[tuple[Engine, Thumbwheel, str]]:
    """The bare engine and our server, ready, with the same adapter; and the URL of our server's store.

    The engine of this process first: it is a fork, and gRPC has threads.
    """
    adapter = write_adapter(model, folder / "adapter", seed=1)
    sets = [f"model.path={model}", f"server.max_sequences={PLACES}", *sets]
    async with AsyncExitStack() as stack:
        environment = dict(os.environ)
        engine = await start_engine(config.load(None, sets))
        # What vLLM has written into it is for processes of its own, not for the servers that are started from here.
        os.environ.clear()
        os.environ.update(environment)
        stack.push_async_callback(engine.close)
        await engine.load(Weights(ADAPTER, 1, adapter))
        bare = Engine(engine, adapter)  # now: later there are others' engines below this process
        (folder / "thumbwheel").mkdir()
        sets += ["learner.min_votes=1000000", *figures.FREE_PORTS]
        ours = await stack.enter_async_context(
            fresh.running(folder / "thumbwheel", [word for item in sets for word in ("--set", item)])
        )
        store = await Store.open(ours.redis_url, "default")
        stack.push_async_callback(store.close)
        await publish(Registry(store), folder / "thumbwheel" / "versions", model, ADAPTER, seed=1)
        services = await stack.enter_async_context(connect(Door(ours.grpc, ours.admin)))
        yield bare, Thumbwheel(services, _child(ours.pid, "server")), ours.redis_url


@asynccontextmanager
async def targets(model: Path, folder: Path) -> AsyncIterator[list[Target]]:
    """All three."""
    import aiohttp

    async with AsyncExitStack() as stack:
        bare, ours, _ = await stack.enter_async_context(pair(model, folder))
        address, pid = await stack.enter_async_context(openai_server(model, folder / "adapter", folder))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        yield [bare, ours, OpenAi(session, address, str(model), pid)]


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
            named = b"-m" in words and words[words.index(b"-m") + 1] == module.encode()
            if named and int(_stat(int(entry.name))[1]) == parent:
                return int(entry.name)
    raise LookupError(f"process {parent} has no child that runs {module}")


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """All rounds, and what they come to."""
    model = Path(base_model.ensure(Config(), console).model.path)
    plan = QUICK if quick else FULL
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        async with targets(model, Path(scratch)) as ways:
            for target in ways:  # each one's first answers are slow
                for adapter in (False, True):
                    await measure(target, Load(2, 2), adapter, first_seed=1)
            gc.collect()
            gc.freeze()
            for adapter in (False, True):
                name = "adapter" if adapter else "base"
                title = f"{name}, first token"
                report[title] = await _first_tokens(ways, plan, adapter)
                console.print(title, {key: str(spread) for key, spread in report[title].items()})
                for load in plan.loads:
                    title = f"{name}, {load.streams} streams"
                    report[title] = _compare(await _rounds(ways, plan, load, adapter))
                    console.print(title, {key: str(spread) for key, spread in report[title]["ratios"].items()})
    return report


async def _rounds(ways: Sequence[Target], plan: Plan, load: Load, adapter: bool) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {target.name: [] for target in ways}
    for number in range(plan.runs):
        for target in ways if number % 2 else ways[::-1]:
            if target.name == "openai" and number >= plan.openai[adapter]:
                continue
            rounds[target.name].append(await measure(target, load, adapter, first_seed=1000 * number))
    return rounds


async def _first_tokens(ways: Sequence[Target], plan: Plan, adapter: bool) -> dict[str, Spread]:
    bare, ours, _ = ways
    runs = [await first_tokens(ours, bare, adapter, 1000 * i, plan.pairs) for i in range(plan.first_token_runs)]
    return {key: Spread.of([each[key] for each in runs]) for key in runs[0]}


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
