"""What our layer costs a message, and how many messages a second one core can send.

Two pairs, each in turn and again, in one run:

    grpc        a bare grpc.aio handler that yields messages made beforehand
    thumbwheel  our whole server over an engine that costs nothing: the limit is our layer's and grpc's

with every message answered on one core, which the clients are kept off; and, with a model that costs next to nothing,

    engine      vLLM's AsyncLLM in this process
    thumbwheel  our server on the same model

where the difference in CPU time is what stands between vLLM's frontend and the wire.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from grpc import aio
from rich.console import Console

from bench import figures, serve, tiny_model
from bench.figures import Spread
from bench.processes import process_cpu, rest
from bench.targets import Engine, Thumbwheel, pair
from server.app import OPTIONS
from server.app import serve as run_server
from server.engine import Chunk, SamplingSpec, Weights
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel.config import load as load_config
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

STREAMS = 32
TOKENS = 128
"""Of an answer; two more messages are its receipt and its end."""
METHOD = "/thumbwheel.v1.ChatService/StreamChat"
SPAWNED = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Plan:
    runs: int
    answers: int


FULL = Plan(runs=3, answers=128)
QUICK = Plan(runs=1, answers=64)


class FreeEngine(ScriptedEngine):
    """Tokens from nowhere, one after the other, for every request at once."""

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingSpec,
        n: int,
        weights: Weights,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[Chunk, None]:
        for left in range(sampling.max_tokens - 1, -1, -1):
            await asyncio.sleep(0)
            yield Chunk(0, " wheel", [7], [-0.5], None if left else "length")


def _serve_thumbwheel(core: int, config: Config, line: Connection) -> None:
    os.sched_setaffinity(0, {core})

    async def start(config: Config) -> FreeEngine:
        return FreeEngine()

    uvloop.run(run_server(config, on_ready=lambda addresses: line.send(addresses.grpc), start_engine=start))


class Premade(chat_pb2_grpc.ChatServiceServicer):
    """The same messages without anything behind them."""

    def __init__(self) -> None:
        receipt = chat_pb2.Receipt(response_id="t" + 32 * "0" + ".0", version="base", turn_id="t" + 32 * "0")
        usage = chat_pb2.Usage(prompt_tokens=20, completion_tokens=TOKENS)
        finish = chat_pb2.Finish(reason=pb.FINISH_REASON_LENGTH, usage=usage, log_status=chat_pb2.LOG_STATUS_LOGGED)
        deltas = [chat_pb2.StreamChatResponse(delta=" wheel") for _ in range(TOKENS)]
        self._answer = [
            chat_pb2.StreamChatResponse(receipt=receipt), *deltas, chat_pb2.StreamChatResponse(finish=finish)
        ]  # fmt: skip

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: Any
    ) -> AsyncGenerator[chat_pb2.StreamChatResponse, None]:
        for message in self._answer:
            await asyncio.sleep(0)
            yield message


def _serve_grpc(core: int, config: Config, line: Connection) -> None:
    os.sched_setaffinity(0, {core})

    async def main() -> None:
        server = aio.server(options=OPTIONS)
        chat_pb2_grpc.add_ChatServiceServicer_to_server(Premade(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        line.send(f"127.0.0.1:{port}")
        await server.wait_for_termination()

    uvloop.run(main())


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    address: str
    pid: int


@asynccontextmanager
async def process(
    name: str, target: Callable[[int, Config, Connection], None], core: int, config: Config
) -> AsyncIterator[Server]:
    ours, theirs = SPAWNED.Pipe()
    child = SPAWNED.Process(target=target, args=(core, config, theirs), daemon=True)
    child.start()
    theirs.close()  # so that the end of the child ends the wait for it
    try:
        address = await asyncio.to_thread(ours.recv)
        assert child.pid is not None
        yield Server(name, address, child.pid)
    finally:
        child.terminate()
        await asyncio.to_thread(child.join)


async def flood(server: Server, answers: int) -> dict[str, float]:
    """As many messages as it can send. They are counted and not read: clients must cost less than the server."""
    async with aio.insecure_channel(server.address) as channel:
        ask: Any = channel.unary_stream(METHOD)  # bytes in, bytes out
        await _answers(ask, STREAMS)
        await rest()
        cpu, began = process_cpu(server.pid), time.perf_counter()
        messages = await _answers(ask, answers)
        seconds, cpu = time.perf_counter() - began, process_cpu(server.pid) - cpu
    return {
        "messages": messages,
        "messages_per_second": messages / seconds,
        "core_busy": cpu / seconds,
        "cpu_us_per_message": 1e6 * cpu / messages,
    }


async def _answers(ask: Any, answers: int) -> int:
    """Messages of all of them, STREAMS answers at a time."""
    numbers = iter(range(answers))

    async def stream() -> int:
        messages = 0
        for number in numbers:
            message = pb.Message(role=pb.ROLE_USER, content=f"Question {number}")
            asked = chat_pb2.ChatInput(messages=[message], sampling=pb.Sampling(max_tokens=TOKENS, temperature=1))
            async for _ in ask(chat_pb2.StreamChatRequest(input=asked).SerializeToString(), timeout=100):
                messages += 1
        return messages

    return sum(await asyncio.gather(*(stream() for _ in range(STREAMS))))


async def layer(plan: Plan, model: Path, folder: Path, redis_url: str) -> dict[str, Any]:
    """One core for the server, the others for its clients and its store."""
    core, *others = sorted(os.sched_getaffinity(0))
    config = load_config(
        None,
        [f"model.path={model}", f"data_dir={folder}", f"redis.url={redis_url}", "redis.namespace=messages",
         f"server.max_sequences={STREAMS}", *figures.FREE_PORTS],
    )  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {"grpc": [], "thumbwheel": []}
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(process("grpc", _serve_grpc, core, config)),
            await stack.enter_async_context(process("thumbwheel", _serve_thumbwheel, core, config)),
        ]
        pin(os.getpid(), others or [core])
        for number in range(plan.runs):
            for server in servers if number % 2 else servers[::-1]:
                found[server.name].append(await flood(server, plan.answers))
    return _side_by_side(found, "grpc", "cpu_us_per_message")


def pin(pid: int, cores: Sequence[int]) -> None:
    """All threads of a process that are there now."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), cores)


async def above_vllm(plan: Plan, engine: Engine, ours: Thumbwheel) -> dict[str, Any]:
    """CPU time of vLLM's frontend alone and of our server, which has the same frontend in it."""
    found: dict[str, list[dict[str, float]]] = {"engine": [], "thumbwheel": []}
    load = serve.Load(STREAMS, plan.answers)
    for number in range(-1, plan.runs):
        for target in (engine, ours) if number % 2 else (ours, engine):
            done = await serve.measure(target, load, adapter=False, first_seed=1000 * (number + 1))
            if number < 0:  # first answers are slow
                continue
            found[target.name].append(
                {
                    "tokens": done.tokens,
                    "messages": done.messages,
                    "messages_per_second": done.messages / done.seconds,
                    "cpu_us_per_message": 1e6 * done.server_cpu / done.messages,
                    "other_cpu_seconds": done.other_cpu,
                }
            )
    return _side_by_side(found, "engine", "cpu_us_per_message")


def _side_by_side(found: dict[str, list[dict[str, float]]], peer: str, key: str) -> dict[str, Any]:
    pairs = zip(found["thumbwheel"], found[peer], strict=True)
    return {
        f"added_{key}": Spread.of([ours[key] - theirs[key] for ours, theirs in pairs]),
        **{name: {k: Spread.of([each[k] for each in runs]) for k in runs[0]} for name, runs in found.items()},
    }


async def run(quick: bool) -> dict[str, Any]:
    plan = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        folder = Path(scratch)
        # Elsewhere: an engine is forked from here, and must not inherit the threads of torch.
        writer = SPAWNED.Process(target=tiny_model.write, args=(folder / "model",))
        writer.start()
        await asyncio.to_thread(writer.join)
        async with pair(folder / "model", folder, ("server.threads=1",)) as (engine, ours, redis_url):
            results = {"tiny model": await above_vllm(plan, engine, ours)}
            return results | {"free engine": await layer(plan, folder / "model", folder, redis_url)}


def main() -> None:
    asked = figures.options("messages", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = uvloop.run(run(asked.quick))
    for title, found in results.items():
        for name, each in found.items():
            console.print(
                title, name, {key: str(value) for key, value in each.items()} if isinstance(each, dict) else str(each)
            )
    figures.write(asked.json, "messages", asked.quick, results)


if __name__ == "__main__":
    main()
