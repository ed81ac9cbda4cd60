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
    scheme = "https" if settings.security.tls_certificate else "http"
    facts = {
        "page": f"{scheme}://{instance.web}/",
        "gRPC": f"{instance.grpc}  (admin: {instance.admin})",
        "OpenAI": f"{scheme}://{instance.web}/v1",
        "metrics": f"{scheme}://{instance.http}/metrics  (learner: {scheme}://{instance.learner_http}/metrics)",
        "health": f"{scheme}://{instance.http}/readyz",
        "data": f"{settings.data_dir}  (logs in logs/)",
        "live": live,
    }
    hints = {command(words, settings): meaning for words, meaning in NEXT}
    console.print(Text(f"\nthumbwheel is ready ({seconds:.0f} s)\n", style="bold green"))
    _columns(console, facts, "dim", "bold")
    console.print("\nIn another terminal:")
    _columns(console, hints, "bold", "dim")
    console.print("\nCtrl-C stops everything; what was rated and learned is kept.\n")


def _columns(console: Console, rows: dict[str, str], left: str, right: str) -> None:
    """Never broken into lines: addresses and commands are there to be copied."""
    width = max(map(len, rows))
    for key, value in rows.items():
        console.print(Text.assemble((f"  {key:<{width}}  ", left), (value, right)), soft_wrap=True)


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
    console.print(Text.assemble((time.strftime("%H:%M:%S "), "dim"), line), soft_wrap=True)


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
