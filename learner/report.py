"""The page of a cycle: plain facts in, one document for people out.

    Facts ──► cycle-7.json, for programs, and to be rendered again when somebody is erased
      └─────► cycle-7.html, complete in itself: no script, no picture, no address of anything

Whatever people or models have said is escaped, and the page forbids its reader's browser to load or run anything.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from learner.report_charts import Point, bars, calibration, line
from learner.report_words import LEAST_ANSWERS

Figure = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has no NaN: what is not known is null there."""

CURVES = (
    ("reward_mean", "Reward of the answers, −1 to 1"),
    ("kl_per_sequence", "KL to the base, nats per answer"),
    ("entropy", "Entropy of a token, nats"),
    ("clipfrac", "Clipped tokens, share"),
    ("explained_variance", "Explained variance of the returns"),
    ("margin", "Liked over disliked, in nats times beta"),
)
"""Figures of an iteration that are drawn."""

OUTCOMES = {
    "released": "The candidate passed the gate and was made live.",
    "rejected": "The gate refused the candidate; the version before it goes on serving.",
    "too_few_votes": "There were too few usable votes to learn from.",
    "reward_model_below_floor": "The reward model could not tell liked answers from others well enough to train on.",
    "diverged": "The training left the finite numbers; nothing of it is released.",
    "superseded": "Somebody promoted or rolled back while the cycle ran; what they chose stands.",
}


class _Fact(BaseModel):
    # Errors are logged, and what people have said is in no log.
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Comparison(_Fact):
    """What the live version and the candidate answered to one held-out prompt, and what the judge thinks of it."""

    turn: str
    """The turn that the prompt is from."""
    prompt: str = ""
    before: str
    after: str
    before_score: Figure
    """Probability that it is liked; NaN without a judge."""
    after_score: Figure


class Word(_Fact):
    """What a word brought, on the mean, to the logit of the answers that it is in."""

    text: str
    effect: Figure
    answers: int
    turns: tuple[str, ...]
    """Some of the turns that it is from."""


class Bin(_Fact):
    """Votes of about the same predicted probability, on answers that the prediction had not seen."""

    predicted: Figure
    liked: Figure
    votes: Figure
    """What they weigh."""


class Heard(_Fact):
    """Votes on a version's answers."""

    version: str
    up_rate: Figure
    votes: int


class Past(_Fact):
    """A cycle before, or this one."""

    cycle: str
    outcome: str
    auc: Figure
    win_rate: Figure


class Facts(_Fact):
    """All that a page shows."""

    cycle: Annotated[str, Field(pattern=r"^cycle-[0-9]+$")]
    outcome: str
    reasons: tuple[str, ...] = ()
    version: str = ""
    parent: str
    votes: int
    seconds: Figure
    finished: datetime
    metrics: dict[str, Figure] = {}
    iterations: tuple[dict[str, Figure], ...] = ()
    calibration: tuple[Bin, ...] = ()
    heard: tuple[Heard, ...] = ()
    past: tuple[Past, ...] = ()
    """Oldest first."""
    comparisons: tuple[Comparison, ...] = ()
    words: tuple[Word, ...] = ()

    @property
    def turns(self) -> set[str]:
        """Turns of people that the page shows something of."""
        return {row.turn for row in self.comparisons} | {turn for word in self.words for turn in word.turns}

    def keeping(self, turns: Container[str]) -> Facts:
        """Without what is of other turns: a page remembers nothing longer than the turn log does."""
        words = []
        for word in self.words:
            left = tuple(turn for turn in word.turns if turn in turns)
            if len(left) >= LEAST_ANSWERS:
                words.append(word.model_copy(update={"turns": left}))
        rows = tuple(row for row in self.comparisons if row.turn in turns)
        return self.model_copy(update={"comparisons": rows, "words": tuple(words)})


def page(facts: Facts) -> str:
    """A cycle's page; the same facts give the same page."""
    title = f"{facts.cycle}: {facts.outcome}"
    return _document(
        title,
        '<p><a href="index.html">all cycles</a></p>',
        f'<h1>{escape(title)}</h1><p class="lead">{escape(OUTCOMES.get(facts.outcome, ""))}</p>',
        "<h2>Verdict</h2><ul>" + "".join(f"<li>{escape(reason)}</li>" for reason in facts.reasons) + "</ul>",
        _head(facts),
        _training(facts),
        _reward_model(facts),
        _comparisons(facts),
        _history(facts),
        _metrics(facts),
    )


def index(pages: Sequence[Facts]) -> str:
    """The list of pages, in their order."""
    rows = "".join(
        f'<tr><td><a href="{escape(facts.cycle)}.html">{escape(facts.cycle)}</a></td><td>{_time(facts.finished)}</td>'
        f"<td>{escape(facts.outcome)}</td><td>{escape(facts.version)}</td><td>{facts.votes}</td>"
        f"<td>{_number(facts.metrics.get('reward_model_auc', math.nan), '.2f')}</td>"
        f"<td>{_number(facts.metrics.get('win_rate', math.nan), '.0%')}</td></tr>"
        for facts in pages
    )
    return _document(
        "thumbwheel: cycles",
        "<h1>Cycles</h1>",
        f"<table><tr><th>cycle</th><th>finished</th><th>outcome</th><th>version</th><th>votes</th><th>AUC</th>"
        f"<th>win rate</th></tr>{rows}</table>",
    )


def _head(facts: Facts) -> str:
    minutes, seconds = divmod(round(facts.seconds) if math.isfinite(facts.seconds) else 0, 60)
    entries = {
        "version": facts.version or "none",
        "parent": facts.parent,
        "votes": str(facts.votes),
        "duration": f"{minutes} min {seconds} s",
        "finished": _time(facts.finished),
    }
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(said)}</dd>" for name, said in entries.items()) + "</dl>"


def _training(facts: Facts) -> str:
    if not facts.iterations:
        return "<h2>Training</h2><p>The cycle ended before it.</p>"
    charts = []
    for key, title in CURVES:
        points = [
            Point(f"{figures.get('iteration', place):g}", figures.get(key, math.nan))
            for place, figures in enumerate(facts.iterations)
        ]
        if any(point.finite for point in points):
            charts.append(line(title, points))
    about = "By iteration; 0 is the one on rated answers, those after it learn from fresh ones. DPO and KTO: by epoch."
    return f'<h2>Training</h2><p>{about}</p><div class="charts">{"".join(charts)}</div>'


def _reward_model(facts: Facts) -> str:
    if not facts.calibration and not facts.words:
        return ""
    bins = [(each.predicted, each.liked, each.votes) for each in facts.calibration]
    charts = [calibration("Predicted (across) and observed (up) share of up-votes", bins)] if bins else []
    if facts.words:
        points = [Point(f"{word.text} ({word.answers})", word.effect) for word in facts.words]
        charts.append(bars("What words bring to an answer's logit (answers they are in)", points, "+.2f"))
    about = (
        "Predictions are of models that had not seen the conversation. An answer's logit is the sum of what its words "
        "bring, its form (length, whether it ended by itself) and a constant, so the figures are exact; what LoRA "
        "knows, where it pays, comes on top."
    )
    return f'<h2>Reward model</h2><p>{about}</p><div class="charts">{"".join(charts)}</div>'


def _comparisons(facts: Facts) -> str:
    if not facts.comparisons:
        return "<h2>The same prompts before and after</h2><p>None are kept.</p>"
    rows = "".join(
        f"<tr><td>{_said(row.prompt)}</td>"
        f"<td>{_said(row.before)}<b>{_number(row.before_score, '.2f')}</b></td>"
        f"<td>{_said(row.after)}<b>{_number(row.after_score, '.2f')}</b></td></tr>"
        for row in facts.comparisons
    )
    return (
        "<h2>The same prompts before and after</h2><p>Held out: neither the policy nor its reward model has learned "
        "from their conversations. The first sample of each, with the judge's probability that it is liked.</p>"
        f"<table><tr><th>prompt</th><th>before ({escape(facts.parent)})</th><th>after ({escape(facts.version)})</th>"
        f"</tr>{rows}</table>"
    )


def _history(facts: Facts) -> str:
    labels = [past.cycle.removeprefix("cycle-") for past in facts.past]
    charts = [
        line(title, [Point(label, value) for label, value in zip(labels, values, strict=True)], form)
        for title, values, form in (
            ("Reward model's held-out AUC, by cycle", [past.auc for past in facts.past], ".2f"),
            ("Win rate against the version before, by cycle", [past.win_rate for past in facts.past], ".0%"),
        )
    ]
    heard = [
        Point(f"{each.version} ({each.votes})", each.up_rate, *_wilson(each.up_rate, each.votes))
        for each in facts.heard
    ]
    if heard:
        charts.insert(0, bars("Up-rate by version (votes), 95 % intervals", heard, ".0%"))
    return f'<h2>The last cycles</h2><div class="charts">{"".join(charts)}</div>'


def _metrics(facts: Facts) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{_number(facts.metrics[name], '.4g')}</td></tr>"
        for name in sorted(facts.metrics)
    )
    return f"<details><summary>All figures</summary><table>{rows}</table></details>"


def _wilson(rate: float, votes: int) -> tuple[float, float]:
    """Bounds of a share with 95 % confidence (Wilson 1927); NaN without votes."""
    if not votes or not math.isfinite(rate):
        return math.nan, math.nan
    z = 1.96
    middle, room = rate + z * z / (2 * votes), z * math.sqrt(rate * (1 - rate) / votes + (z / (2 * votes)) ** 2)
    return (middle - room) / (1 + z * z / votes), (middle + room) / (1 + z * z / votes)


def _said(text: str) -> str:
    """What somebody said, in its own direction of writing."""
    return f'<div class="said" dir="auto">{escape(text)}</div>'


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _document(title: str, *parts: str) -> str:
    document = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>"
    )
    return document.translate(_CONTROLS)


_CONTROLS = dict.fromkeys([*range(9), 11, 12, *range(14, 32), 127], "\N{REPLACEMENT CHARACTER}")

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2937; --paper: #ffffff; --soft: #6b7280; --rule: #d1d5db;
  --mark: #2563eb; --up: #15803d; --down: #b91c1c }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e7eb; --paper: #111827; --soft: #9ca3af; --rule: #374151;
  --mark: #60a5fa; --up: #4ade80; --down: #f87171 } }
body { margin: 2rem auto; max-width: 66rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0 } h2 { margin: 2rem 0 .5rem } a { color: var(--mark) } .lead { font-size: 1.15rem; margin-top: .25rem }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem } dt, figcaption { color: var(--soft); font-size: .85rem }
dd { margin: 0 }
table { border-collapse: collapse; width: 100% } th { text-align: left; color: var(--soft); font-weight: normal }
th, td { border-bottom: 1px solid var(--rule); padding: .4rem 1rem .4rem 0; vertical-align: top }
.said { white-space: pre-wrap; overflow-wrap: anywhere } td b { color: var(--mark) }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem 2rem }
figure { margin: 0 } svg { width: 100%; height: auto } svg text { fill: var(--ink); font-size: 11px }
.grid { stroke: var(--rule); fill: none } .curve { stroke: var(--mark); stroke-width: 2; fill: none }
.ideal { stroke: var(--soft); stroke-dasharray: 4 4; fill: none } .dot { fill: var(--mark) }
rect.up { fill: var(--up) } rect.down { fill: var(--down) }
.whisker { stroke: var(--ink); stroke-width: 1.5; fill: none }
"""
