"""What the demo found, as a table for people and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.exam import Marks, Sample
from cli.raters import Tally

SHOWN_SAMPLES = 4
MAX_SHOWN_CHARS = 220


@dataclass(frozen=True, slots=True)
class Report:
    """The keys of the JSON, in its order. Rates are shares of 1, times are in seconds."""

    taste: str
    noise: float
    seed: int
    ratings: int
    cycles: int
    releases: int
    up_rate_before: float
    up_rate_after: float
    heldout_prompts: int
    competence_before: float
    competence_after: float
    kl_nats_per_sequence: float
    """Of the live version against the base, as its gate measured it; 0 for the base."""
    failed_requests: int
    truncated_streams: int
    swaps: int
    swap_seconds: float
    """Mean, from the news of a release to the first request that it may answer."""
    wall_seconds: float
    samples_per_prompt: int
    version_before: str
    version_after: str
    outcomes: Mapping[str, int]
    """Cycles by outcome."""
    version_metrics: Mapping[str, float]
    """Figures of the live version's cycle."""
    streams_at_swaps: tuple[int, ...]
    """Visitors' answers that were streaming when each release was announced."""
    streams: int
    """Visitors' answers in all."""
    up_rate_while_rating: Mapping[str, float]
    """By version: share of the rated answers that the taste likes, without noise."""
    before: tuple[Sample, ...]
    after: tuple[Sample, ...]

    @property
    def fine(self) -> bool:
        """Nothing failed and nothing was cut."""
        return self.failed_requests == 0 and self.truncated_streams == 0

    def write(self, file: Path) -> None:
        """As JSON."""
        file.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def up_rates(tally: Tally) -> dict[str, float]:
    """By version, over the rated answers."""
    return {name: version.up_rate for name, version in tally.versions.items()}


def show(report: Report, console: Console) -> None:
    """Before and after, side by side, with answers to the same prompts under the same seeds."""
    table = Table(title=f"taste: {report.taste}", title_justify="left", header_style="dim")
    for heading in ("", f"before ({report.version_before})", f"after ({report.version_after})"):
        table.add_column(heading, overflow="fold")
    answers = report.heldout_prompts * report.samples_per_prompt
    table.add_row(
        f"up-rate, {answers} answers to\n{report.heldout_prompts} held-out prompts",
        f"{report.up_rate_before:.1%}",
        Text(f"{report.up_rate_after:.1%}", style="bold"),
    )
    table.add_row("plain questions right", f"{report.competence_before:.1%}", f"{report.competence_after:.1%}")
    table.add_row("KL to the base, nats an answer", "0", f"{report.kl_nats_per_sequence:.2f}", end_section=True)
    for before, after in _telling(report):
        table.add_row(_cut(before.prompt), _cut(before.answer), _cut(after.answer))
    console.print(table)
    console.print(
        f"{report.ratings} ratings with {report.noise:.0%} noise, {report.cycles} cycles, {report.releases} released, "
        f"{report.swaps} swaps of {1000 * report.swap_seconds:.0f} ms, {report.streams} visitors' streams "
        f"({', '.join(map(str, report.streams_at_swaps)) or 'none'} running at the swaps): "
        f"{report.failed_requests} failed, {report.truncated_streams} truncated; {report.wall_seconds / 60:.1f} min",
        highlight=False,
    )


def _telling(report: Report) -> list[tuple[Sample, Sample]]:
    """Answers with the same seed, one of each prompt, first those that the taste came to like."""
    pairs = list(zip(report.before, report.after, strict=True))
    pairs.sort(key=lambda pair: pair[0].liked - pair[1].liked)
    by_prompt = {pair[0].prompt: pair for pair in reversed(pairs)}
    return sorted(by_prompt.values(), key=lambda pair: pair[0].liked - pair[1].liked)[:SHOWN_SAMPLES]


def _cut(text: str) -> Text:
    """On one line, with a mark where lines broke; a young model's control characters stay off the terminal."""
    text = "".join(c if c.isprintable() else "↵" if c == "\n" else " " for c in text.strip())
    return Text(text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + " …")


def marks_line(marks: Marks) -> str:
    """An exam in one line."""
    return f"up-rate {marks.up_rate:.1%}, plain questions {marks.competence:.1%} right ({marks.version})"
