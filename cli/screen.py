"""What `thumbwheel up` shows."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.instance import Instance
from thumbwheel.config import Config

NEXT = (
    ("chat", "talk to it; + and - rate the last answer, e corrects it"),
    ("simulate --taste brief", "let simulated raters vote, and watch a better version go live here"),
    ("versions", "all versions and their verdicts"),
    ("rollback", "take the live version back"),
)


def ready(console: Console, settings: Config, instance: Instance, live: str, seconds: float) -> None:
    """The page that is shown once everything answers."""
    facts = Table.grid(padding=(0, 3))
    facts.add_row("  gRPC", instance.grpc)
    facts.add_row("  metrics", f"http://{instance.http}/metrics   learner: http://{instance.learner_http}/metrics")
    facts.add_row("  health", f"http://{instance.http}/readyz")
    facts.add_row("  data", f"{settings.data_dir} (logs in logs/)")
    facts.add_row("  live", Text(live, style="bold"))
    hints = Table.grid(padding=(0, 3))
    for words, meaning in NEXT:
        hints.add_row(f"  {command(words, settings)}", Text(meaning, style="dim"))
    console.print()
    console.print(Text(f"thumbwheel is ready ({seconds:.0f} s)", style="bold green"))
    console.print(facts, soft_wrap=True)
    console.print("\nIn another terminal:")
    console.print(hints, soft_wrap=True)
    console.print("\nCtrl-C stops everything; what was rated and learned is kept.\n")


@contextlib.asynccontextmanager
async def waiting(console: Console, words: str) -> AsyncIterator[None]:
    """Shows that something goes on. Drawn by the event loop: no thread may run while processes are started."""
    if not console.is_terminal:
        console.print(words)
        yield
        return

    async def draw(live: Live) -> None:
        while True:
            live.refresh()
            await asyncio.sleep(0.1)

    with Live(Spinner("dots", words), console=console, auto_refresh=False, transient=True) as live:
        drawing = asyncio.create_task(draw(live))
        try:
            yield
        finally:
            drawing.cancel()


def say(console: Console, line: str) -> None:
    """One event, with the time."""
    console.print(Text(time.strftime("%H:%M:%S "), style="dim") + Text(line), soft_wrap=True)


def command(words: str, settings: Config) -> str:
    """How to call one of our commands in a terminal of the same folder, for this instance."""
    program = str(Path(sys.executable).with_name("thumbwheel"))
    found = shutil.which("thumbwheel")
    if found and Path(found).samefile(program):
        program = "thumbwheel"
    else:
        program = min(program, os.path.relpath(program), key=len)
    if settings.data_dir != Path("data").absolute():
        words += f" --data-dir {settings.data_dir}"
    return f"{program} {words}"
