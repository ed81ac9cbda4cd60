"""What processes take of the machine, and which of them is which; from /proc."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path


async def rest() -> None:
    """Returns when the machine has been idle for a moment; after half a minute it is as idle as it will get."""
    for _ in range(60):
        before = machine_cpu()
        await asyncio.sleep(0.5)
        if machine_cpu() - before < 0.05:
            return


def process_cpu(pid: int) -> float:
    """User and system time, all threads."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine_cpu() -> float:
    """What all processes took together; what the machine itself had to wait for another is in it."""
    with Path("/proc/stat").open(encoding="utf-8") as file:
        user, nice, system, _idle, _waits, *interrupts = (int(word) for word in file.readline().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def engine_pids(server: int) -> list[int]:
    """vLLM's processes below a server."""
    parents: dict[int, int] = {}
    named: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            parents[pid] = int(_stat(pid)[1])
            if (entry / "cmdline").read_bytes().startswith(b"VLLM::"):
                named.append(pid)

    def below(pid: int) -> bool:
        return pid == server or (pid in parents and below(parents[pid]))

    return [pid for pid in named if below(pid)]


def child(parent: int, module: str) -> int:
    """The process that `thumbwheel up` runs a module in."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            named = b"-m" in words and words[words.index(b"-m") + 1] == module.encode()
            if named and int(_stat(int(entry.name))[1]) == parent:
                return int(entry.name)
    raise LookupError(f"process {parent} has no child that runs {module}")


def _stat(pid: int) -> list[str]:
    """What /proc says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
