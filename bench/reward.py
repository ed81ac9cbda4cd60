"""What the reward model learns of a taste from how many votes, on answers of the base to prompts that nobody rated.

    thumbs  50 to 400, one in ten flipped
    pairs   100 thumbs alone, with 100 rankings of three answers to a prompt, and with 100 edits
    refit   50 new thumbs beside 400: the features of their answers, the raters' weights, the fit

Votes are on the prompts that the demo's raters ask, measured is on those of its exam, over five draws of answers and
mistakes. The model is the product's: `weigh` and `fit`, as `learner/cycle.py` calls them. Figures:

    auc        against the taste itself; auc_votes against votes with as many mistakes, which no model can foresee
    ece_votes  calibration error of the probability against such votes, for it is the chance of a vote; ece against the
               taste. ece_chance is what a perfect model would show on as many answers, by chance alone
    peer_auc   of TF-IDF and logistic regression (bench/tfidf.py) from the same thumbs; auc_to_peer is the ratio

A gain counts as measured where a paired t-test over the draws says so (one-sided, 95 %). Answers are sampled once, with
the engine, and kept with their features in DATA_DIR/bench: that takes a quarter of an hour, a rerun only the fits.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

from bench import figures, tiny_model
from bench.base_answers import BaseAnswers, Said
from bench.edits import EDITS
from bench.figures import Spread
from bench.reward_votes import SAMPLES, Deal, edits, rankings, thumbs
from bench.tfidf import TfIdf
from cli import base_model, prompts, tastes
from cli.options import resolve
from learner.dataset import Answer, Dataset, Pair, opening
from learner.raters import weigh
from learner.reward_model import RewardModel, auc, ece, fit
from thumbwheel import config
from thumbwheel_client.v1 import record_pb2 as pb

NOISE = 0.1
AUC_TARGETS = {"brief": (200, 0.9), "impersonal": (400, 0.8), "unbroken": (400, 0.8), "few_commas": (400, 0.8)}
"""Thumbs, and the least AUC with them."""
MOST_ECE = 0.08
MOST_REFIT_SECONDS = 30.0
CONFIDENCE = 0.95

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Size:
    """How much is done."""

    rated: int = 144
    """Prompts that are rated."""
    unseen: int = 40
    unseen_samples: int = 12
    """Answers to each of those."""
    thumbs: tuple[int, ...] = (50, 100, 200, 400)
    pairs: int = 100
    """Rankings or edits, beside as many thumbs: one of the numbers above."""
    mended: int = 150
    """Answers that edits are drawn from."""
    seeds: int = 5
    known: int = 400
    new: int = 50


QUICK = Size(rated=24, unseen=8, unseen_samples=3, thumbs=(24, 48), pairs=24, mended=30, seeds=2, known=48, new=8)


@dataclass(frozen=True, slots=True)
class World:
    """All answers as the learner knows them; row i of `features` belongs to answers[i]."""

    said: list[Said]
    answers: list[Answer]
    features: Floats  # (N, D)
    rated: NDArray[np.int64]  # (P, SAMPLES) places of the answers to each prompt
    unseen: NDArray[np.int64]  # (U,) places of those that are measured on

    @classmethod
    def make(cls, base: BaseAnswers, size: Size) -> World:
        wanted = [(prompt, SAMPLES) for prompt in prompts.rated()[: size.rated]]
        wanted += [(prompt, size.unseen_samples) for prompt in prompts.held_out()[: size.unseen]]
        said = [each for group in base.sampled(wanted) for each in group]
        features = base.features(each.tokens for each in said)
        rated = np.arange(size.rated * SAMPLES).reshape(size.rated, SAMPLES)
        unseen = np.arange(rated.size, len(said))
        return cls(said, [_answer(f"r{i}", each) for i, each in enumerate(said)], features, rated, unseen)

    def liked(self, taste: str) -> Bools:
        """(N,) what the taste says of each."""
        judge = tastes.find(taste)
        return np.array([judge(each.prompt, each.text) for each in self.said])

    def mended(self, base: BaseAnswers, taste: str, count: int) -> tuple[World, list[tuple[int, int]]]:
        """With edits behind the answers: of up to `count` rated answers that the taste dislikes, one each.

        Returns the places of each edit and its answer, too. The edits are the same for all seeds.
        """
        liked = self.liked(taste)
        disliked = [place for place in np.random.default_rng(0).permutation(self.rated.size) if not liked[place]]
        said, pairs = list(self.said), []
        for place in map(int, disliked[:count]):
            answer = self.said[place]
            text = EDITS[taste](answer.text, random.Random(place))
            pairs.append((len(said), place))
            said.append(Said(answer.prompt, text, answer.prompt_ids, base.encode(text)))
        new = said[len(self.said) :]
        features = np.vstack([self.features, base.features(each.tokens for each in new)]) if new else self.features
        answers = [*self.answers, *(_answer(f"edit of r{place}", said[edit]) for edit, place in pairs)]
        return World(said, answers, features, self.rated, self.unseen), pairs


def _answer(key: str, said: Said) -> Answer:
    conversation = opening([pb.Message(role=pb.ROLE_USER, content=said.prompt)])
    return Answer(key, conversation, said.prompt_ids, said.answer_ids, (), "base", 0, False)


def learn(data: Dataset, features: Floats, settings: config.Learner) -> RewardModel:
    """As a cycle does."""
    weighed = weigh(data, features, settings.raters)
    model, _ = fit(weighed.data, features, settings.reward_model)
    return model


def one_draw(
    world: World, liked: Bools, mended: Sequence[tuple[int, int]], size: Size, seed: int
) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Figures by number of thumbs; and AUC with pairs beside thumbs."""
    settings = config.load().learner
    dice = np.random.default_rng(seed)
    deal = Deal.of(world.rated, dice)
    labels = thumbs(deal.thumbs[: max(size.thumbs)], liked, NOISE, dice)
    truth = liked[world.unseen]
    votes = truth ^ (dice.random(len(truth)) < NOISE)

    by_thumbs = {}
    for count in size.thumbs:
        model = learn(Dataset(world.answers, labels[:count]), world.features, settings)
        by_thumbs[count] = _measure(model, world.features[world.unseen], truth, votes, dice)
        peer = TfIdf.fit(
            [world.said[label.answer].text for label in labels[:count]],
            np.array([label.value for label in labels[:count]]),
        )
        peer_auc = auc(peer.score([world.said[place].text for place in world.unseen]), truth)
        ratio = by_thumbs[count]["auc"] / peer_auc if peer_auc else float("nan")
        by_thumbs[count] |= {"peer_auc": peer_auc, "auc_to_peer": ratio}

    def with_pairs(pairs: list[Pair]) -> float:
        model = learn(Dataset(world.answers, labels[: size.pairs], pairs), world.features, settings)
        return auc(model.score(world.features[world.unseen]), truth)

    ranked = rankings(deal.groups, liked, NOISE, size.pairs, dice)
    edited = edits(mended, NOISE, size.pairs, dice)
    alone, with_rankings, with_edits = by_thumbs[size.pairs]["auc"], with_pairs(ranked), with_pairs(edited)
    return by_thumbs, {
        "thumbs": alone,
        "thumbs_rankings": with_rankings,
        "thumbs_edits": with_edits,
        "gain_rankings": with_rankings - alone,
        "gain_edits": with_edits - alone,
        "rankings": sum(pair.share for pair in ranked),
        "edits": len(edited),
    }


def _measure(
    model: RewardModel, features: Floats, truth: Bools, votes: Bools, dice: np.random.Generator
) -> dict[str, float]:
    scores, chances = model.score(features), model.probability(features)
    by_chance = [ece(chances, (dice.random(len(chances)) < chances).astype(np.float64)) for _ in range(100)]
    return {
        "auc": auc(scores, truth),
        "auc_votes": auc(scores, votes),
        "ece_votes": ece(chances, votes.astype(np.float64)),
        "ece_chance": float(np.mean(by_chance)),
        "ece": ece(chances, truth.astype(np.float64)),
    }


def refit(base: BaseAnswers, world: World, liked: Bools, size: Size) -> dict[str, Spread]:
    """Seconds that new votes take; the policy is in memory, as it is in a learner."""
    settings = config.load().learner
    base.compute([world.said[0].tokens])  # the first pass of a process costs more
    seconds: dict[str, list[float]] = {"features": [], "fit": [], "all": []}
    for seed in range(size.seeds):
        dice = np.random.default_rng(seed)
        labels = thumbs(Deal.of(world.rated, dice).thumbs[: size.known + size.new], liked, NOISE, dice)
        began = time.perf_counter()
        base.compute([world.said[label.answer].tokens for label in labels[size.known :]])
        computed = time.perf_counter()
        learn(Dataset(world.answers, labels), world.features, settings)
        ended = time.perf_counter()
        for name, value in (("features", computed - began), ("fit", ended - computed), ("all", ended - began)):
            seconds[name].append(value)
    return {f"{name}_seconds": Spread.of(values) for name, values in seconds.items()}


def run(base: BaseAnswers, size: Size, console: Console) -> dict[str, Any]:
    world = World.make(base, size)
    found: dict[str, Any] = {}
    for taste in EDITS:
        liked = world.liked(taste)
        more, mended = world.mended(base, taste, size.mended)
        draws = []
        for seed in range(size.seeds):
            draws.append(one_draw(more, liked, mended, size, seed))
            console.print(f"{taste}, draw {seed + 1} of {size.seeds}: {_line(draws[-1])}")
        found[taste] = {
            "up_rate_rated": float(liked[world.rated].mean()),
            "up_rate_unseen": float(liked[world.unseen].mean()),
            "unseen_answers": len(world.unseen),
            "thumbs": {count: _columns([by[count] for by, _ in draws]) for count in size.thumbs},
            "pairs": _columns([pairs for _, pairs in draws]),
        }
    timed = refit(base, world, world.liked("brief"), size)
    return {"tastes": found, "refit": timed, "targets": targets(found, timed)}


def _line(draw: tuple[dict[int, dict[str, float]], dict[str, float]]) -> str:
    by_thumbs, pairs = draw
    aucs = ", ".join(f"{count}: {each['auc']:.3f}" for count, each in by_thumbs.items())
    return f"AUC {aucs}; rankings {pairs['gain_rankings']:+.3f}, edits {pairs['gain_edits']:+.3f}"


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Of each figure the spread and the values themselves; without those that could not be measured."""
    columns = {name: [row[name] for row in rows if np.isfinite(row[name])] for name in rows[0]}
    return {name: {"spread": Spread.of(values), "values": values} for name, values in columns.items() if values}


def targets(found: dict[str, Any], timed: dict[str, Spread]) -> list[dict[str, Any]]:
    """What was asked for and whether it was met, by means over the draws."""
    rows = []
    for taste, (count, least) in AUC_TARGETS.items():
        measured = found[taste]["thumbs"].get(count, {})
        value, gap = _mean(measured, "auc"), _mean(measured, "ece_votes")
        rows.append(_row(f"{taste}: AUC at {count} thumbs", f">= {least}", value, value >= least))
        rows.append(_row(f"{taste}: ECE at {count} thumbs", f"<= {MOST_ECE}", gap, gap <= MOST_ECE))
    for kind in ("rankings", "edits"):
        for taste in AUC_TARGETS:
            gains = found[taste]["pairs"].get(f"gain_{kind}", {"values": []})["values"]
            measurable = surely_positive(gains)
            value = float(np.mean(gains)) if gains else float("nan")
            rows.append(_row(f"{taste}: AUC gained by {kind}", "> 0, surely", value, measurable))
    slowest = timed["all_seconds"].high
    rows.append(_row("refit: seconds, the slowest", f"< {MOST_REFIT_SECONDS:g}", slowest, slowest < MOST_REFIT_SECONDS))
    return rows


def surely_positive(gains: Sequence[float]) -> bool:
    """Whether paired differences are above zero on average, by a one-sided t-test."""
    if len(gains) < 2:
        return False
    margin = stats.t.ppf(CONFIDENCE, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
    return bool(np.mean(gains) > margin)


def _mean(measured: dict[str, Any], name: str) -> float:
    return float(np.mean(measured[name]["values"])) if name in measured else float("nan")


def _row(name: str, target: str, found: float, met: bool) -> dict[str, Any]:
    return {"name": name, "target": target, "found": found if np.isfinite(found) else None, "met": met}


def show(results: dict[str, Any], console: Console) -> None:
    """By taste and thumbs; the pairs; the targets. Means and standard deviations over the draws."""
    names = ("auc", "auc_votes", "ece_votes", "ece_chance", "ece", "peer_auc", "auc_to_peer")
    table = _table("taste", "liked", "thumbs", *names)
    pairs = _table("taste", "AUC of thumbs", "with rankings", "gain", "with edits", "gain")
    for taste, found in results["tastes"].items():
        for count, measured in found["thumbs"].items():
            table.add_row(
                taste, f"{found['up_rate_unseen']:.0%}", str(count), *(_words(measured, name) for name in names)
            )
        columns = ("thumbs", "thumbs_rankings", "gain_rankings", "thumbs_edits", "gain_edits")
        pairs.add_row(taste, *(_words(found["pairs"], name) for name in columns))
    verdicts = _table("target", "asked", "found", "")
    for row in results["targets"]:
        if row["found"] is None:
            verdicts.add_row(row["name"], row["target"], "", "not measured")
        else:
            verdicts.add_row(row["name"], row["target"], f"{row['found']:.3g}", "met" if row["met"] else "not met")
    for each in (table, pairs, verdicts):
        console.print(each)
    console.print("refit", {name: str(spread) for name, spread in results["refit"].items()})


def _table(*headings: str) -> Table:
    table = Table(header_style="dim")
    for heading in headings:
        table.add_column(heading)
    return table


def _words(measured: dict[str, Any], name: str) -> str:
    if name not in measured:
        return ""
    values = measured[name]["values"]
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=min(1, len(values) - 1)):.3f}"


def _asked() -> argparse.Namespace:
    parser = figures.parser("reward", __doc__.splitlines()[0])
    parser.add_argument("--answers", type=Path, metavar="DIR", help="keeps the answers there; default: data/bench")
    return parser.parse_args()


def main() -> None:
    asked, console = _asked(), figures.console()
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        if asked.quick:
            size, model, folder = QUICK, tiny_model.write(Path(scratch) / "model"), Path(scratch) / "answers"
        else:
            settings = resolve(None, None, None)
            size, folder = Size(), settings.data_dir / "bench"
            model = Path(base_model.ensure(settings, console).model.path)
        results = run(BaseAnswers(model, asked.answers or folder, console), size, console)
    show(results, console)
    figures.write(asked.json, "reward", asked.quick, results)


if __name__ == "__main__":
    main()
