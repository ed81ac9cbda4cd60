"""`thumbwheel simulate`: lets simulated raters chat with a running server and rate its answers."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli import connection, prompts, tastes
from cli.connection import Door, Server
from cli.options import DataDir
from cli.patience import Patience
from cli.raters import Judgement, Raters, Tally

TasteName = Annotated[
    str,
    typer.Option("--taste", metavar="NAME", help=f"{', '.join(tastes.BUILT_IN)}, or module:function of your own."),
]
Noise = Annotated[float, typer.Option("--noise", min=0, max=1, help="Share of ratings that are flipped.")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, max=64, help="Raters at work at once.")]
Seed = Annotated[int, typer.Option("--seed", help="Makes prompts, samples and noise repeatable.")]


def simulate(
    taste: TasteName = "brief",
    noise: Noise = 0.1,
    ratings: Annotated[int, typer.Option("--ratings", min=1, help="How many answers are rated.")] = 96,
    concurrency: Concurrency = 8,
    seed: Seed = 1,
    server: Server = "",
    data_dir: DataDir = None,
) -> None:
    """Let simulated raters ask and rate."""

    async def work(door: Door) -> None:
        judge = tastes.find(taste)
        patience = Patience()
        async with connection.connect(door) as services:
            with _bar() as bar:
                task = bar.add_task("rating", total=ratings, up="")

                def show(judgement: Judgement) -> None:
                    rate = raters.tally.versions[judgement.version].up_rate
                    bar.update(task, advance=1, up=f"{judgement.version}: {rate:.0%} liked")

                raters = Raters(services, judge, prompts.rated(), noise, seed, concurrency, patience, show)
                await raters.rate(ratings)
        _summary(raters.tally, taste, patience.failures)

    connection.run(work, server, data_dir)


def version_table(tally: Tally) -> Table:
    """Up-rate of each version that answered: by the taste itself, and as rated."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("version", "ratings", "liked", "rated up"):
        table.add_column(heading, justify="left" if heading == "version" else "right")
    for name, version in tally.versions.items():
        table.add_row(name, str(version.ratings), f"{version.up_rate:.1%}", f"{version.rated_up / version.ratings:.1%}")
    return table


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    return Progress(*columns, TextColumn("{task.fields[up]}"), console=console, disable=not console.is_terminal)


def _summary(tally: Tally, taste: str, failures: int) -> None:
    console = Console(highlight=False)
    notes = [f"{failures} calls repeated"] if failures else []
    notes += [f"{tally.unrated} answers not kept"] if tally.unrated else []
    console.print(f"{tally.ratings} ratings for the taste {taste}" + "".join(f", {note}" for note in notes))
    console.print(version_table(tally))
