"""Real processes, really killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cli import supervisor
from cli.guard import Guard
from cli.supervisor import Program, Supervised
from thumbwheel.errors import SetupError

PARENT = """
import pathlib, signal, subprocess, sys, time
folder = pathlib.Path(sys.argv[1])
print("hello from the child", flush=True)
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
grandchild = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
(folder / "grandchild.new").write_text(str(grandchild.pid))
(folder / "grandchild.new").rename(folder / "grandchild")
time.sleep(600)
"""
"""A program that starts another one and says so in a file; that file is what makes it ready."""


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    guard = Guard.start()
    yield guard
    guard.close()


def program(folder: Path, *command: str, grace: float = 5) -> Program:
    async def ready() -> bool:
        return (folder / "grandchild").exists()

    return Program("it", list(command) or parent(folder), os.environ, folder / "logs" / "it.log", ready, grace)


def parent(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-S", "-c", PARENT, str(folder), *words]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


async def raised(task: Awaitable[None]) -> str:
    with pytest.raises(SetupError) as error:
        await asyncio.wait_for(task, 30)
    return str(error.value)


async def start(folder: Path, guard: Guard, said: list[str], **options: float) -> tuple[Supervised, int]:
    """Started and ready; and the process that it started in turn."""
    it = Supervised(program(folder, **options), guard, said.append)
    it.start()
    await asyncio.wait_for(it.ready.wait(), 20)
    return it, int((folder / "grandchild").read_text())


async def test_killed_program_is_started_again_and_its_children_are_ended(tmp_path: Path, guard: Guard) -> None:
    said: list[str] = []
    it, grandchild = await start(tmp_path, guard, said)
    (tmp_path / "grandchild").unlink()
    os.kill(parent_of(grandchild), signal.SIGKILL)
    await until(lambda: not alive(grandchild))
    await asyncio.wait_for(it.ready.wait(), 20)
    second = int((tmp_path / "grandchild").read_text())
    assert second != grandchild
    assert alive(second)
    assert "killed by SIGKILL" in said[0]
    assert "starting it again in 0.5 s" in said[0]
    assert "ready again" in said[1]
    await it.stop(time.monotonic() + 5)
    await until(lambda: not alive(second))


async def test_stop_ends_the_whole_group(tmp_path: Path, guard: Guard) -> None:
    said: list[str] = []
    it, grandchild = await start(tmp_path, guard, said)
    await it.stop(time.monotonic() + 5)
    await until(lambda: not alive(grandchild))
    assert said == []


async def test_stubborn_program_is_killed_after_its_grace(tmp_path: Path, guard: Guard) -> None:
    said: list[str] = []
    it = Supervised(program(tmp_path, *parent(tmp_path, "stubborn"), grace=0.3), guard, said.append)
    it.start()
    await asyncio.wait_for(it.ready.wait(), 20)
    began = time.monotonic()
    await it.stop(time.monotonic() + 60)
    assert time.monotonic() - began < 5
    assert "did not stop in 0.3 s" in said[0]
    grandchild = int((tmp_path / "grandchild").read_text())
    await until(lambda: not alive(grandchild))


async def test_deadline_is_stronger_than_grace(tmp_path: Path, guard: Guard) -> None:
    it = Supervised(program(tmp_path, *parent(tmp_path, "stubborn"), grace=60), guard, lambda _: None)
    it.start()
    await asyncio.wait_for(it.ready.wait(), 20)
    began = time.monotonic()
    await it.stop(began + 0.2)
    assert time.monotonic() - began < 5


async def test_wrong_setup_is_not_tried_again(tmp_path: Path, guard: Guard) -> None:
    said: list[str] = []
    command = [sys.executable, "-S", "-c", "print('the port is taken'); raise SystemExit(2)"]
    it = Supervised(program(tmp_path, *command), guard, said.append)
    it.start()
    assert it.task
    message = await raised(it.task)
    assert "it does not start (exit code 2)" in message
    assert "the port is taken" in message
    assert said == []
    await it.stop(time.monotonic())


async def test_program_that_never_works_is_given_up(tmp_path: Path, guard: Guard) -> None:
    said: list[str] = []
    command = [sys.executable, "-S", "-c", "import os; print('no luck'); os.abort()"]
    it = Supervised(program(tmp_path, *command), guard, said.append)
    it.start()
    assert it.task
    message = await raised(it.task)
    assert "killed by SIGABRT" in message
    assert message.count("no luck") == 1, "only the last start's words"
    assert len(said) == supervisor.TRIES - 1


async def test_program_that_has_worked_is_never_given_up(
    tmp_path: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_WAIT", 0.01)
    said: list[str] = []
    it, grandchild = await start(tmp_path, guard, said)
    for _ in range(supervisor.TRIES + 1):
        (tmp_path / "grandchild").unlink()
        os.kill(parent_of(grandchild), signal.SIGKILL)
        await until((tmp_path / "grandchild").exists)
        grandchild = int((tmp_path / "grandchild").read_text())
    assert any("last words" in line and "hello from the child" in line for line in said)
    await it.stop(time.monotonic() + 5)


async def test_command_that_is_not_there(tmp_path: Path, guard: Guard) -> None:
    it = Supervised(program(tmp_path, str(tmp_path / "absent")), guard, lambda _: None)
    it.start()
    assert it.task
    assert "cannot be started" in await raised(it.task)


async def test_long_log_is_moved_aside_at_start(tmp_path: Path, guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LOG_LIMIT", 10)
    log = tmp_path / "logs" / "it.log"
    log.parent.mkdir()
    log.write_text("what was said yesterday")
    it, _ = await start(tmp_path, guard, [])
    await it.stop(time.monotonic() + 5)
    assert log.with_name("it.log.1").read_text() == "what was said yesterday"
    assert log.read_text() == "hello from the child\n"


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_supervisor import Guard, start
async def main():
    it, _ = await start(Path(sys.argv[1]), guard, [])
    await it.task
guard = Guard.start()
asyncio.run(main())
"""


async def test_nothing_survives_kill_9_of_the_supervisor(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, str(tmp_path), str(Path(__file__).parent)]
    process = await asyncio.create_subprocess_exec(*command)
    await until((tmp_path / "grandchild").exists)
    grandchild = int((tmp_path / "grandchild").read_text())
    child = parent_of(grandchild)
    process.kill()
    await process.wait()
    await until(lambda: not alive(child) and not alive(grandchild))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
