"""A Redis-compatible server that tests may kill, freeze and misconfigure."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import redis

from cli import redis_server


class RedisProcess:
    """A server that keeps its file over kills."""

    def __init__(
        self,
        folder: Path,
        fsync: str = "always",
        environment: Mapping[str, str] | None = None,
        lacking: Sequence[str] = (),
    ) -> None:
        """`lacking` are commands that it does not know."""
        self.folder = folder
        self.socket = redis_server.socket_path(folder)
        self.url = redis_server.url(folder)
        self._fsync = fsync
        self._lacking = [word for name in lacking for word in ("--rename-command", name, f"hidden-{name}")]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        durable = redis_server.command(redis_server.find_binary(), self.folder)
        weaker = {"always": [], "off": ["--appendonly", "no"]}.get(self._fsync, ["--appendfsync", self._fsync])
        self._process = subprocess.Popen(
            [*durable, *weaker, *self._lacking, "--logfile", str(self.folder / "log")], env=self._environment
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                self.command("PING")
                return
            except redis.ConnectionError:
                assert self._process.poll() is None, "the Redis server did not start"
                assert time.monotonic() < deadline, "the Redis server does not answer"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def command(self, *words: str | int) -> object:
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            return client.execute_command(*words)

    def kill(self) -> None:
        """kill -9: nothing is flushed."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """It keeps its connections and answers nobody."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()
