"""Real parts shared by all tests: a Redis-compatible server and a tiny random model with the real tokenizer."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_client

from bench.tiny_model import write as write_tiny_model
from tests.certificates import Authority
from tests.redis_process import RedisProcess

# Read when torch is imported, so before that: engine and learner share two cores with the tests, and threads that wait
# by spinning take the time of those that work.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


# A shell that starts this in the background has Ctrl-C ignored, and every process of ours would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
