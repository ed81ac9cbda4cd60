"""What `thumbwheel demo` shows while it runs: one line a phase, and below them what the wheel does just now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

REDRAW_SECONDS = 0.25


class View:
    """On a terminal a live picture; elsewhere one line for every event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=console,
            auto_refresh=False,
        )
        self._status: Callable[[], str] = str

    def show(self, status: Callable[[], str]) -> None:
        """What the last line says, asked anew for every picture."""
        self._status = status

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Redraws on the event loop: no thread may run while processes are started."""
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self._picture, console=self._console, auto_refresh=False) as live:
            drawing = asyncio.create_task(self._draw(live))
            try:
                yield
            finally:
                drawing.cancel()
                self._status = str
                live.refresh()

    def phase(self, title: str, total: int) -> Phase:
        """Begins a line of its own."""
        return Phase(self, self._progress, title, total)

    def say(self, line: str) -> None:
        """An event that stays on the screen."""
        stamp = Text(f"{time.monotonic() - self._started:6.0f} s  ", style="dim")
        self._console.print(stamp + Text(line), soft_wrap=True)

    def ended(self, line: str) -> None:
        """The end of a phase, which a terminal shows in the phase's own line."""
        if not self._console.is_terminal:
            self.say(line)

    async def _draw(self, live: Live) -> None:
        while True:
            live.refresh()
            await asyncio.sleep(REDRAW_SECONDS)

    def _picture(self) -> RenderableType:
        status = self._status()
        return Group(self._progress, Text(status, style="cyan")) if status else self._progress


class Phase:
    """One line of the view: something with a beginning and an end."""

    def __init__(self, view: View, progress: Progress, title: str, total: int) -> None:
        self._view = view
        self._progress = progress
        self._title = title
        self._task: TaskID = progress.add_task(title, total=total, note="")

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)

    def reached(self, done: float, note: str = "") -> None:
        """So much is done."""
        self._progress.update(self._task, completed=done, note=note)

    def end(self, note: str) -> None:
        """It is over; `note` stays."""
        task = self._progress.tasks[self._task]
        self._progress.update(self._task, completed=task.total, note=note)
        self._progress.stop_task(self._task)
        self._view.ended(f"{self._title}: {note}")
