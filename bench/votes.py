"""How many durable votes a second, beside what the store itself can do.

    store       XADD of an event of a vote's size, answered after the fsync, from as many clients
    thumbwheel  Rate over gRPC, answered after the fsync

Both write to the same append-only file, in turn. The answers that are rated are asked for beforehand.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import uvloop
from rich.console import Console

from bench import figures
from bench.figures import Spread
from cli import base_model, fresh, prompts
from cli.connection import Door, Services, connect
from cli.redis_server import socket_path
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

CLIENTS = 24
EVENT_BYTES = 220
"""About what a thumb takes in the vote stream."""


async def answers(services: Services, count: int) -> list[str]:
    """Ids of answers to rate."""
    found: list[str] = []
    for prompt in itertools.islice(itertools.cycle(prompts.rated()), -(-count // 8)):
        message = pb.Message(role=pb.ROLE_USER, content=prompt)
        asked = chat_pb2.ChatInput(messages=[message], n=8, sampling=pb.Sampling(max_tokens=1, temperature=1))
        reply = await services.chat.Chat(
            chat_pb2.ChatRequest(input=asked), timeout=110, metadata=services.identity("bench")
        )
        found += [answer.receipt.response_id for answer in reply.answers]
    return found[:count]


async def rate(services: Services, ids: list[str], votes: int) -> dict[str, float]:
    """Every vote is another than the last on its answer, so each is an event of its own."""
    numbers = iter(range(votes))
    seconds: list[float] = []

    async def client() -> None:
        for number in numbers:
            request = feedback_pb2.RateRequest(
                response_id=ids[number % len(ids)],
                thumb=pb.THUMB_UP if number // len(ids) % 2 else pb.THUMB_DOWN,
                idempotency_key=str(uuid.uuid4()),
            )
            began = time.perf_counter()
            await services.feedback.Rate(request, timeout=30, metadata=services.identity("bench"))
            seconds.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return _figures(time.perf_counter() - began, seconds)


async def write(path: Path, writes: int) -> dict[str, float]:
    """The store's own limit, by redis-benchmark where there is one, else by bare sockets."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if tool is not None:
        return await asyncio.to_thread(_tool, tool, path, writes)
    command = _command("XADD", "bench:limit", "*", "e", "x" * EVENT_BYTES)
    numbers = iter(range(writes))
    seconds: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        for _ in numbers:
            began = time.perf_counter()
            writer.write(command)
            await reader.readline()  # $<length>
            await reader.readline()  # the id
            seconds.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return _figures(time.perf_counter() - began, seconds)


def _tool(tool: str, path: Path, writes: int) -> dict[str, float]:
    command = [tool, "-s", str(path), "-c", str(CLIENTS), "-n", str(writes), "--csv"]
    out = subprocess.run(
        [*command, "XADD", "bench:limit", "*", "e", "x" * EVENT_BYTES], capture_output=True, text=True, check=True
    ).stdout
    header, values = (line.replace('"', "").split(",") for line in out.strip().splitlines()[-2:])
    row = dict(zip(header, values, strict=False))
    return {
        "per_second": float(row["rps"]),
        "ms_p50": float(row["p50_latency_ms"]),
        "ms_p99": float(row["p99_latency_ms"]),
    }


def _command(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def _figures(wall: float, seconds: list[float]) -> dict[str, float]:
    return {
        "per_second": len(seconds) / wall,
        "ms_p50": 1e3 * float(np.percentile(seconds, 50)),
        "ms_p99": 1e3 * float(np.percentile(seconds, 99)),
    }


async def run(quick: bool, console: Console) -> dict[str, Any]:
    """Alternates between the two; a ratio for every pair."""
    runs, votes = (1, 1_000) if quick else (7, 10_000)
    model = base_model.ensure(Config(), console).model.path
    sets = [f"model.path={model}", "learner.min_votes=1000000000", *figures.FREE_PORTS]
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        folder = Path(scratch)
        options = [word for item in sets for word in ("--set", item)]
        async with fresh.running(folder, options) as instance, connect(Door(instance.grpc, instance.admin)) as services:
            ids = await answers(services, 64 if quick else 400)
            await rate(services, ids, 2_000)  # while the learner, which starts later, gets ready
            store, ours = [], []
            for _ in range(runs):
                store.append(await write(socket_path(folder / "redis"), votes))
                ours.append(await rate(services, ids, votes))
    return {
        "clients": CLIENTS,
        "store": {key: Spread.of([each[key] for each in store]) for key in store[0]},
        "thumbwheel": {key: Spread.of([each[key] for each in ours]) for key in ours[0]},
        "share_of_store": Spread.of([a["per_second"] / b["per_second"] for a, b in zip(ours, store, strict=True)]),
    }


def main() -> None:
    asked = figures.options("votes", __doc__.splitlines()[0])
    console = Console(highlight=False)
    results = uvloop.run(run(asked.quick, console))
    for name, found in results.items():
        console.print(
            name, {key: str(value) for key, value in found.items()} if isinstance(found, dict) else str(found)
        )
    figures.write(asked.json, "votes", asked.quick, results)


if __name__ == "__main__":
    main()
