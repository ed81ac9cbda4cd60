"""Small charts as inline SVG: no script, and nothing from elsewhere. The page's style colours them, in light and dark.

Each has a title and its figures in words, for those who do not see it. What is not a number leaves a gap.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
"""Margins of the plotting area, in units of the drawing."""
LABELS = 6
"""Most labels on a horizontal axis."""
ROW, NAME, FIGURE = 20, 124, 48
"""Of bars: height of a row, and widths of the names at its left and the figure at its right."""


@dataclass(frozen=True, slots=True)
class Point:
    """A figure and what it is of, perhaps with an interval."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def finite(self) -> list[float]:
        return [number for number in (self.value, self.low, self.high) if math.isfinite(number)]


def line(title: str, points: Sequence[Point], form: str = ".3g") -> str:
    """Figures in their order; `form` is their format."""
    known = [point for point in points if math.isfinite(point.value)]
    if not known:
        return _drawing(title, "No figures yet.", HEIGHT, _text(WIDTH / 2, HEIGHT / 2, "no figures yet", "middle"))
    low, high = _range([point.value for point in known])
    xs = [_between(i + 0.5, 0, len(points), LEFT, WIDTH - RIGHT) for i in range(len(points))]
    ys = [_between(point.value, low, high, HEIGHT - BOTTOM, TOP) for point in points]  # NaN stays NaN
    parts = list(_grid(low, high, form))
    for i in range(0, len(points), math.ceil(len(points) / LABELS)):
        parts.append(_text(xs[i], HEIGHT - 8, points[i].label, "middle"))
    parts.append(f'<path class="curve" d="{" ".join(_strokes(xs, ys))}"/>')
    for x, y, point in zip(xs, ys, points, strict=True):
        if math.isfinite(y):
            parts.append(_dot(x, y, _said(point, form)))
    return _drawing(title, "; ".join(_said(point, form) for point in points), HEIGHT, *parts)


def bars(title: str, points: Sequence[Point], form: str = ".3g") -> str:
    """A row for each figure, from zero to the right, or to the left where it is negative; intervals as whiskers."""
    height = ROW * max(len(points), 1) + 8
    finite = [number for point in points for number in point.finite]
    if not finite:
        return _drawing(title, "No figures yet.", height, _text(WIDTH / 2, height / 2 + 4, "no figures yet", "middle"))
    low, high = min(0.0, *finite), max(0.0, *finite)
    high = high if high > low else low + 1
    zero = _between(0, low, high, NAME, WIDTH - FIGURE)
    parts = [f'<path class="grid" d="M{zero:.1f} 2V{height - 2}"/>']
    for row, point in enumerate(points):
        middle = 4 + ROW * (row + 0.5)
        parts.append(_text(NAME - 8, middle + 4, _cut(point.label), "end"))
        parts.append(_text(WIDTH - 2, middle + 4, _figure(point.value, form), "end"))
        if not math.isfinite(point.value):
            continue
        end = _between(point.value, low, high, NAME, WIDTH - FIGURE)
        side, start = ("up", zero) if point.value >= 0 else ("down", end)
        parts.append(
            f'<rect class="{side}" x="{start:.1f}" y="{middle - 6:.1f}" width="{abs(end - zero):.1f}" height="12">'
            f"<title>{escape(_said(point, form))}</title></rect>"
        )
        if math.isfinite(point.low) and math.isfinite(point.high):
            ends = [_between(number, low, high, NAME, WIDTH - FIGURE) for number in (point.low, point.high)]
            parts.append(f'<path class="whisker" d="M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}"/>')
    return _drawing(title, "; ".join(_said(point, form) for point in points), height, *parts)


def calibration(title: str, bins: Sequence[tuple[float, float, float]]) -> str:
    """Predicted against observed shares; on the diagonal they agree.

    Args:
        bins: predicted probability, share of up-votes and weight of the votes of each.
    """
    parts = list(_grid(0, 1, ".1f"))
    for share in (0.0, 0.5, 1.0):
        parts.append(_text(_between(share, 0, 1, LEFT, WIDTH - RIGHT), HEIGHT - 8, f"{share:.1f}", "middle"))
    parts.append(f'<path class="ideal" d="M{LEFT} {HEIGHT - BOTTOM}L{WIDTH - RIGHT} {TOP}"/>')
    words = []
    for predicted, liked, votes in bins:
        if not math.isfinite(predicted) or not math.isfinite(liked):
            continue
        words.append(f"predicted {predicted:.2f}, liked {liked:.2f} of {votes:.0f} votes")
        x, y = _between(predicted, 0, 1, LEFT, WIDTH - RIGHT), _between(liked, 0, 1, HEIGHT - BOTTOM, TOP)
        parts.append(_dot(x, y, words[-1]))
    return _drawing(title, "; ".join(words) or "No votes to compare with.", HEIGHT, *parts)


def _drawing(title: str, words: str, height: float, *parts: str) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {WIDTH} {height:g}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(words)}</desc>{''.join(parts)}</svg></figure>"
    )


def _grid(low: float, high: float, form: str) -> Iterator[str]:
    for tick in _ticks(low, high):
        y = _between(tick, low, high, HEIGHT - BOTTOM, TOP)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 6, y + 4, _figure(tick, form), "end")


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within, two to five of them."""
    unit = 10.0 ** math.floor(math.log10(high - low))
    step = next(unit * part for part in (0.5, 1.0, 2.0) if high - low <= 5 * unit * part or part == 2.0)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest with a little room; never empty, however alike they are."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.01 * max(abs(low), abs(high)), 1e-3)
    return low - room, high + room


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    """Where a value of [low, high] lies in [start, end]."""
    return start + (value - low) / (high - low) * (end - start)


def _strokes(xs: Sequence[float], ys: Sequence[float]) -> Iterator[str]:
    pen = "M"
    for x, y in zip(xs, ys, strict=True):
        if math.isfinite(y):
            yield f"{pen}{x:.1f} {y:.1f}"
        pen = "L" if math.isfinite(y) else "M"


def _dot(x: float, y: float, words: str) -> str:
    return f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{escape(words)}</title></circle>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _said(point: Point, form: str) -> str:
    interval = f" ({_figure(point.low, form)} to {_figure(point.high, form)})" if math.isfinite(point.low) else ""
    return f"{point.label}: {_figure(point.value, form)}{interval}"


def _figure(value: float, form: str) -> str:
    return format(value + 0.0, form) if math.isfinite(value) else "–"  # + 0.0: no "-0"


def _cut(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"
