"""Who uses a data directory: one `thumbwheel up` at a time, which says here where it can be reached."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from thumbwheel.errors import SetupError
from thumbwheel.secret_files import write_secret

PATIENCE = 1.0
"""Seconds for which `claim` waits for the lock."""


@dataclass(frozen=True, slots=True)
class Instance:
    """A `thumbwheel up` that is ready. Addresses are host:port; `client` is how its learner calls it, the key aside."""

    pid: int
    grpc: str
    admin: str
    http: str
    web: str
    learner_http: str
    redis_url: str
    client: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def claim(data_dir: Path) -> Iterator[None]:
    """Makes the directory this process' own.

    The lock belongs to the open file: it holds for as long as this process or a fork of it lives, however it ends.

    Raises:
        SetupError: it cannot be made or written, or another instance has it.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SetupError(
            f"the data directory {data_dir} cannot be written: {error.strerror}\n  choose another with --data-dir"
        ) from error
    try:
        if not _lock(file):
            pid = os.pread(file, 20, 0).decode() or "unknown"
            raise SetupError(
                f"thumbwheel runs already in {data_dir} (pid {pid})\n"
                "  talk to it with `thumbwheel chat`, stop it, or choose another --data-dir"
            )
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        _record(data_dir).unlink(missing_ok=True)  # of one that was killed
        yield
    finally:
        os.close(file)


def announce(data_dir: Path, instance: Instance) -> None:
    """Lets `find` see it. Only for who has claimed the directory."""
    write_secret(_record(data_dir), json.dumps(dataclasses.asdict(instance)))  # the store's URL may hold a password


def withdraw(data_dir: Path) -> None:
    """Undoes `announce`."""
    _record(data_dir).unlink(missing_ok=True)


def find(data_dir: Path) -> Instance | None:
    """The instance that is ready in this directory, or None."""
    try:
        instance = Instance(**json.loads(_record(data_dir).read_text(encoding="utf-8")))
        with (data_dir / "lock").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return instance
    except OSError:
        return None
    return None  # nobody holds the lock: it was killed


def _lock(file: int) -> bool:
    """Tries for a moment: one that was killed may still be ending its children, and `find` looks in for an instant."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def _record(data_dir: Path) -> Path:
    return data_dir / "instance.json"
