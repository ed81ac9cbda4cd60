"""Real parts shared by all tests: a Redis-compatible server, a tiny random model with the real tokenizer, and a server
on real sockets around whichever engine a test brings."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis as redis_client
from grpc import aio

from bench.tiny_model import write as write_tiny_model
from server.app import Addresses, serve
from server.engine import Engine
from tests.certificates import Authority
from tests.redis_process import RedisProcess
from thumbwheel.config import Config
from thumbwheel_client.v1 import chat_pb2_grpc, feedback_pb2_grpc, models_pb2_grpc, rollout_pb2_grpc

# Read when torch is imported, so before that: engine and learner share two cores with the tests, and threads that wait
# by spinning take the time of those that work.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


# A shell that starts this in the background has Ctrl-C ignored, and every process of ours would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Running:
    """A server and stubs for it. `stop` and `task` are for tests of its end."""

    addresses: Addresses
    channel: aio.Channel
    admin: aio.Channel
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


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a durable server of this session's own."""
    server = RedisProcess(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server.url
    server.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisProcess]:
    """A durable server that this test may do anything to."""
    server = RedisProcess(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of the session's server, emptied."""
    client = redis_client.Redis.from_url(redis_server)
    client.flushall()
    client.close()
    return redis_server


@pytest.fixture
def certificates(tmp_path: Path) -> Authority:
    """Makes certificates for loopback, all of one CA: `certificates("name")`."""
    return Authority(tmp_path)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer, hidden-64 random Llama in float32 with SmolLM2's tokenizer and chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Waits for a condition that nothing announces."""

    async def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
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
                "server": {"grpc_port": 0, "admin_port": 0, "http_port": 0, "web_port": 0, "threads": 2, "drain": 5}
                | server,
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
        async with aio.insecure_channel(addresses.grpc) as channel, aio.insecure_channel(addresses.admin) as admin:
            try:
                yield Running(
                    addresses,
                    channel,
                    admin,
                    chat_pb2_grpc.ChatServiceStub(channel),
                    feedback_pb2_grpc.FeedbackServiceStub(channel),
                    models_pb2_grpc.ModelServiceStub(admin),
                    rollout_pb2_grpc.RolloutServiceStub(admin),
                    stop,
                    task,
                )
            finally:
                stop.set()
                await asyncio.wait((task,))
        task.result()

    return run
