"""A server on real sockets with a real store, around whichever engine a test brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import aio

from server.app import Addresses, serve
from server.engine import Engine
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2_grpc, feedback_pb2_grpc, models_pb2_grpc, rollout_pb2_grpc


@dataclass
class Running:
    """A server and stubs for it. `stop` and `task` are for tests of its end."""

    addresses: Addresses
    channel: aio.Channel
    chat: chat_pb2_grpc.ChatServiceAsyncStub
    feedback: feedback_pb2_grpc.FeedbackServiceAsyncStub
    models: models_pb2_grpc.ModelServiceAsyncStub
    rollout: rollout_pb2_grpc.RolloutServiceAsyncStub
    stop: asyncio.Event
    task: asyncio.Task[None]


RunServer = Callable[[Config, Engine], AbstractAsyncContextManager[Running]]


class Lent:
    """An engine that outlives the server it serves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    async def close(self) -> None:
        pass


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits for a condition that nothing announces."""

    async def wait(condition: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture
def settings(tmp_path: Path, redis_url: str, tiny_model: Path) -> Callable[..., Config]:
    """Makes a configuration with free ports, a folder of the test's own and an empty store; keywords set `server.*`."""

    def make(**server: object) -> Config:
        return Config.model_validate(
            {
                "data_dir": tmp_path / "data",
                "model": {"path": str(tiny_model)},
                "redis": {"url": redis_url},
                "server": {"grpc_port": 0, "http_port": 0, "threads": 2, "drain": 5, **server},
            }
        )

    return make


@pytest.fixture
def run_server() -> RunServer:
    """A context manager: the server is ready inside and has drained after."""

    @asynccontextmanager
    async def run(config: Config, engine: Engine) -> AsyncIterator[Running]:
        stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def lend(_: Config) -> Engine:
            return Lent(engine)  # type: ignore[return-value]

        task = asyncio.create_task(serve(config, stop, ready.set_result, lend))
        await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        addresses = ready.result()
        async with aio.insecure_channel(addresses.grpc) as channel:
            try:
                yield Running(
                    addresses,
                    channel,
                    chat_pb2_grpc.ChatServiceStub(channel),
                    feedback_pb2_grpc.FeedbackServiceStub(channel),
                    models_pb2_grpc.ModelServiceStub(channel),
                    rollout_pb2_grpc.RolloutServiceStub(channel),
                    stop,
                    task,
                )
            finally:
                stop.set()
                await asyncio.wait((task,))
        task.result()

    return run
