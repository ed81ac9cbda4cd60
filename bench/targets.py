"""Three ways to the same answers: the bare engine in this process, our server over gRPC, vLLM's own over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench import figures
from bench.adapters import publish, write_adapter
from bench.processes import child, engine_pids
from cli import fresh
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
class Question:
    prompt: str
    seed: int
    max_tokens: int = MAX_TOKENS


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
        yield bare, Thumbwheel(services, child(ours.pid, "server")), ours.redis_url


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
