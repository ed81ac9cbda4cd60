"""Panels of our Grafana dashboards, drawn from a Prometheus: for where there is no Grafana."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from tests.deploy import monitoring
from tests.deploy.prometheus_process import Prometheus

TITLES = (
    "Votes a minute", "Up-rate by version", "Votes that wait",
    "Reward model", "Reward", "KL to the base",
    "Tokens a second", "Time to the first token", "Calls by code",
)  # fmt: skip
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 200, 46, 22, 10
COLOURS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#b877d9", "#f2495c", "#8ab8ff", "#c8c8c8")
STYLE = """
body{background:#111217;color:#ccccdc;font:13px system-ui,sans-serif;margin:12px;width:1330px}
main{display:grid;grid-template-columns:repeat(3,1fr);gap:8px}
section{background:#181b1f;border:1px solid #2a2d33;padding:8px}h2{font-size:13px;font-weight:500;margin:0 0 4px}
text{fill:#9a9aa8;font-size:11px}.grid{stroke:#2a2d33}path{fill:none;stroke-width:1.5}
p{margin:2px 0 0;font-size:11px}i{display:inline-block;width:12px;height:3px;margin:0 4px 3px 10px}
"""


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[tuple[float, float]]
    """Seconds since the epoch, and the figure; NaN is a gap."""


def page(prometheus: Prometheus, since: float) -> str:
    """HTML of the panels with TITLES, from `since` (seconds since the epoch) until now."""
    panels = {panel["title"]: panel for board in monitoring.dashboards().values() for panel in board["panels"]}
    until = time.time()
    drawn = "".join(_panel(panels[title], prometheus, since, until) for title in TITLES)
    return f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><main>{drawn}</main>'


def _panel(panel: dict[str, Any], prometheus: Prometheus, since: float, until: float) -> str:
    step = max(2.0, (until - since) / 300)
    found = [
        Series(_legend(target["legendFormat"], labels), [(float(at), float(figure)) for at, figure in points])
        for target in panel["targets"]
        for labels, points in prometheus.series(target["expr"].replace("$__rate_interval", "60s"), since, until, step)
    ]
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    named = "".join(
        f'<span><i style="background:{colour}"></i>{escape(series.name)}</span>'
        for series, colour in zip(found, COLOURS, strict=False)
    )
    chart = "".join(_chart(found[: len(COLOURS)], unit, since, until, step))
    return (
        f"<section><h2>{escape(panel['title'])}</h2>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}">{chart}</svg><p>{named}</p></section>'
    )


def _legend(form: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), form)


def _chart(found: Sequence[Series], unit: str, since: float, until: float, step: float) -> Iterator[str]:
    figures = [figure for series in found for _, figure in series.points if math.isfinite(figure)]
    top = 1.0 if unit == "percentunit" else 1.1 * max(figures, default=1.0) or 1.0
    bottom = min(0.0, *figures) if figures else 0.0

    def x(at: float) -> float:
        return LEFT + (at - since) / (until - since) * (WIDTH - LEFT - 8)

    def y(figure: float) -> float:
        return HEIGHT - BOTTOM - (figure - bottom) / (top - bottom) * (HEIGHT - BOTTOM - TOP)

    for part in range(5):
        figure = bottom + (top - bottom) * part / 4
        yield f'<path class="grid" d="M{LEFT} {y(figure):.1f}H{WIDTH - 8}"/>'
        yield f'<text x="{LEFT - 6}" y="{y(figure) + 4:.1f}" text-anchor="end">{_figure(figure, unit)}</text>'
    for part in range(1, 5):
        at = since + (until - since) * part / 5
        clock = time.strftime("%H:%M", time.localtime(at))
        yield f'<text x="{x(at):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{clock}</text>'
    for series, colour in zip(found, COLOURS, strict=False):
        pen, before, strokes = "M", -math.inf, []
        for at, figure in series.points:
            if not math.isfinite(figure):
                pen = "M"
                continue
            strokes.append(f"{pen if at - before < 2 * step else 'M'}{x(at):.1f} {y(figure):.1f}")
            pen, before = "L", at
        yield f'<path stroke="{colour}" d="{" ".join(strokes)}"/>'


def _figure(figure: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{figure:.0%}"
    if unit == "s":
        return f"{figure:.3g} s" if figure >= 1 or figure == 0 else f"{figure * 1000:.3g} ms"
    return f"{figure:.3g}"
