"""A bar that tells whoever waits at a terminal how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

Show = Callable[[float, str], None]
"""(share that is done, 0 to 1; what there is to say of it)."""


@contextmanager
def bar(*, hidden: bool = False) -> Iterator[Show]:
    """On the terminal that shows standard error, if it is one; gone when the context ends."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=hidden or not console.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda share, words: progress.update(task, completed=share, description=words)
