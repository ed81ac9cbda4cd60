"""A second process that outlives this one by a moment.

Children die with their parent by themselves (`cli.process`), but what they started in turn does not. The guard is told
of every child's process group; when this process is gone without having said goodbye, even by kill -9, it ends what is
left. As a fork it also holds the lock of the data directory until then.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Self


class Guard:
    """Start it before any thread and any child; close it when no child is left."""

    def __init__(self, pipe: int, pid: int) -> None:
        self._pipe = pipe
        self._pid = pid

    @classmethod
    def start(cls) -> Self:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            _stand(reading)
        os.close(reading)
        return cls(writing, pid)

    def watch(self, group: int) -> None:
        """From now on the group ends with this process."""
        os.write(self._pipe, f"+{group}\n".encode())

    def forget(self, group: int) -> None:
        """The group is empty; its number may be given to others."""
        os.write(self._pipe, f"-{group}\n".encode())

    def close(self) -> None:
        os.close(self._pipe)
        os.waitpid(self._pid, 0)


def end_group(group: int) -> None:
    """Kills whatever is left of a process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _stand(pipe: int) -> None:
    """The guard's whole life; ends the process."""
    os.setsid()  # the terminal's Ctrl-C is not for it
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    groups: set[int] = set()
    with os.fdopen(pipe, encoding="ascii") as lines:
        for line in lines:
            (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        end_group(group)
    os._exit(0)
