"""A server and a learner as processes of their own, which tests may kill.

They are forked from a process that has imported vllm, torch and transformers, which takes most of a start's time.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import random
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["tests.imported"])
# What is killed leaves semaphores to the collector, which would say so at the end.
os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")


def _run(name: str, arguments: list[str], log: Path, before: Callable[[], None] | None) -> None:
    """`python -m name arguments`, where it is forked; a session of its own, among whose processes niceness counts."""
    os.setsid()
    with log.open("ab") as written:
        os.dup2(written.fileno(), 1)
        os.dup2(written.fileno(), 2)
    sys.argv = [name, *arguments]
    if before is not None:
        before()
    sys.exit(importlib.import_module(f"{name}.__main__").main())


def free_port() -> int:
    """Below those that the system lends to connections: one of these could take it before its server starts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Half:
    """A server or a learner that can be killed and started again."""

    name: str
    http_port: int
    arguments: list[str]
    log: Path
    process: BaseProcess | None = None

    def start(self, before: Callable[[], None] | None = None) -> None:
        """`before` is called in the new process first."""
        self.process = _FORKED.Process(target=_run, args=(self.name, self.arguments, self.log, before))
        self.process.start()

    @property
    def running(self) -> bool:
        return self.process is not None and self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """Minus the signal that killed it; None while it runs."""
        assert self.process is not None
        return self.process.exitcode

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.join()

    def stop(self) -> None:
        if self.process is not None and self.running:
            self.process.terminate()
            self.process.join(20)
            if self.running:
                self.kill()

    async def ready(self, seconds: float = 90) -> None:
        async def look() -> bool:
            assert self.running, self.log.read_text()[-3000:]
            return await asyncio.to_thread(self.answers)

        await eventually(look, seconds)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/metrics", timeout=5) as reply:
            for family in text_string_to_metric_families(reply.read().decode()):
                for sample in family.samples:
                    if sample.name == name and all(sample.labels.get(k) == v for k, v in labels.items()):
                        return float(sample.value)
        return 0.0


async def eventually(condition: Callable[[], object], seconds: float) -> None:
    """Waits for a condition in another process, which cannot be awaited."""
    deadline = monotonic() + seconds
    while True:
        found = condition()
        if await found if asyncio.iscoroutine(found) else found:
            return
        assert monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.05)


def apart(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    """Runs a coroutine in a process of its own. Where it starts an engine that is forked, and gRPC, once this process
    has used it, does not always survive another fork."""
    with ProcessPoolExecutor(1, mp_context=_FORKED) as pool:
        pool.submit(_finish, work, *arguments).result()


def _finish(work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
    asyncio.run(work(*arguments))
