"""A thumbwheel of the demo's own: started in an empty directory, stopped at the end, whatever happens between."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from cli import instance
from cli.instance import Instance
from cli.process import describe_end, die_with_parent
from thumbwheel.errors import SetupError

START_SECONDS = 600.0
STOP_SECONDS = 20.0


@contextmanager
def empty_folder(wanted: Path | None) -> Iterator[Path]:
    """The wanted folder, which is kept, or a temporary one.

    Raises:
        SetupError: it is there and not empty, or cannot be made.
    """
    if wanted is None:
        folder = Path(tempfile.mkdtemp(prefix="thumbwheel-demo-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = wanted.expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SetupError(f"--data-dir {wanted} is not empty; the demo starts fresh: choose another")
    except OSError as error:
        raise SetupError(f"--data-dir {wanted} cannot be used: {error.strerror}") from error
    yield folder


@asynccontextmanager
async def running(folder: Path, options: Sequence[str]) -> AsyncIterator[Instance]:
    """`thumbwheel up` in `folder`, ready for chat.

    Raises:
        SetupError: it did not start, or ended before the body did; its last words are in it.
    """
    log = folder / "logs" / "up.log"
    log.parent.mkdir(exist_ok=True)
    process = _start(folder, options, log)
    try:
        try:
            yield await _ready(process, folder, log)
        except Exception as error:
            # Whatever the body saw (most likely a call that failed), this is why.
            if process.poll() is not None and not isinstance(error, SetupError):
                raise _ended(process, log) from error
            raise
    finally:
        await _stop(process)


def _start(folder: Path, options: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "cli.main", "up", "--data-dir", str(folder), *options],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we stop it ourselves, and see that it is gone
            preexec_fn=die_with_parent(),
        )


async def _ready(process: subprocess.Popen[bytes], folder: Path, log: Path) -> Instance:
    try:
        async with asyncio.timeout(START_SECONDS):
            while process.poll() is None:
                found = instance.find(folder)
                if found is not None:
                    return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise SetupError(f"thumbwheel was not ready within {START_SECONDS:.0f} s:\n{_last_words(log)}") from None
    raise _ended(process, log)


async def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)


def _ended(process: subprocess.Popen[bytes], log: Path) -> SetupError:
    return SetupError(f"thumbwheel up ended ({describe_end(process.wait())}):\n{_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-12:])
