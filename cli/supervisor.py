"""Keeps programs running: starts them, says when they are ready, starts them again when they die, stops them in order.

start ──► not ready ──answers──► ready
  ▲            │                   │
  └──backoff───┴───────ended───────┘      ended again and again without ever having been ready ──► SetupError
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.guard import Guard, end_group
from cli.process import describe_end, die_with_parent
from thumbwheel.errors import SetupError

SETUP_EXIT = 2
"""Exit code with which our programs say that trying again is of no use."""
TRIES = 3
"""Ends in a row, without ever having been ready, after which it is given up."""
LONGEST_WAIT = 30.0
"""Seconds between two starts at most."""
STEADY = 60.0
"""Seconds of life after which earlier ends no longer count."""
POLL = 0.1
"""Seconds between two looks at whether it is ready."""
LOG_LIMIT = 16 << 20
"""Bytes of log beyond which a start moves it aside; one old file is kept."""


@dataclass(frozen=True, slots=True)
class Program:
    """What is run.

    `ready` looks once whether it answers; `grace` is the seconds between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    ready: Callable[[], Awaitable[bool]]
    grace: float


class Supervised:
    """One program, kept running from `start` to `stop`. Use it on the main thread's event loop only.

    `ready` is set while it answers; `task` ends only by `stop` (cancelled) or with a SetupError.
    """

    def __init__(self, program: Program, guard: Guard, say: Callable[[str], None]) -> None:
        self.name = program.name
        self.ready = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._program = program
        self._guard = guard
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Starts it and looks after it."""
        self.task = asyncio.create_task(self._keep(), name=self.name)

    async def stop(self, deadline: float) -> None:
        """Asks it to end, and ends it at its grace or at the `deadline` (of time.monotonic)."""
        if self.task is not None:
            self.task.cancel()  # first, so that nobody starts it again
            await asyncio.wait([self.task])
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        patience = max(0.0, min(self._program.grace, deadline - time.monotonic()))
        try:
            async with asyncio.timeout(patience):
                await _ended(process)
        except TimeoutError:
            self._say(f"{self.name} did not stop in {patience:.1f} s; ending it")
        self._bury()

    def kill(self) -> None:
        """Ends it and everything it started, now."""
        if self._process is not None:
            end_group(self._process.pid)

    async def _keep(self) -> None:
        failures, worked = 0, False
        while True:
            started = time.monotonic()
            process = self._spawn()
            watch = asyncio.create_task(self._watch(process, started, again=worked or failures > 0))
            try:
                await _ended(process)
            finally:
                watch.cancel()
            code, lasted = process.wait(), time.monotonic() - started
            worked = worked or self.ready.is_set()
            self.ready.clear()
            # What it leaves behind goes with it: an engine without its server would keep memory and cores.
            self._bury()
            failures = 1 if lasted > STEADY else failures + 1
            if not worked and (code == SETUP_EXIT or failures >= TRIES):
                raise SetupError(f"{self.name} does not start ({describe_end(code)}):\n{self._last_words()}")
            wait = min(LONGEST_WAIT, 0.5 * 2 ** (failures - 1))
            self._say(f"{self.name} ended ({describe_end(code)}) after {lasted:.0f} s; starting it again in {wait:g} s")
            if failures % TRIES == 0:
                self._say(f"its last words, from {self._program.log}:\n{self._last_words()}")
            await asyncio.sleep(wait)

    def _spawn(self) -> subprocess.Popen[bytes]:
        try:
            self._process = self._launch(self._program.log)
        except OSError as error:
            raise SetupError(f"{self.name} cannot be started: {error}") from error
        self._guard.watch(self._process.pid)
        return self._process

    def _launch(self, path: Path) -> subprocess.Popen[bytes]:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > LOG_LIMIT:
            path.replace(path.with_name(f"{path.name}.1"))
        with path.open("ab") as log:
            self._log_start = log.tell()
            return subprocess.Popen(
                self._program.command,
                env=dict(self._program.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for us; we stop children in order
                preexec_fn=die_with_parent(),
            )

    async def _watch(self, process: subprocess.Popen[bytes], started: float, again: bool) -> None:
        while process.poll() is None and not await self._program.ready():  # noqa: ASYNC110 - another process' state
            await asyncio.sleep(POLL)
        if process.poll() is None:
            self.ready.set()
            if again:
                self._say(f"{self.name} is ready again ({time.monotonic() - started:.0f} s)")

    def _bury(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        end_group(process.pid)
        process.wait()
        self._guard.forget(process.pid)

    def _last_words(self, lines: int = 12) -> str:
        """The end of what it has said since its last start."""
        try:
            with self._program.log.open("rb") as log:
                log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - (1 << 16)))
                said = log.read().decode(errors="replace").strip().splitlines()
        except OSError as error:
            said = [f"(its log cannot be read: {error.strerror})"]
        return "\n".join(f"  | {line[:400]}" for line in said[-lines:] or ["(it said nothing)"])


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Returns when the process has ended. No thread is needed for it."""
    if process.poll() is not None:
        return
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    descriptor = os.pidfd_open(process.pid)

    def settle() -> None:
        loop.remove_reader(descriptor)
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, settle)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
