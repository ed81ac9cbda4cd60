"""What LoRA on the reward model adds to the head on frozen features, and what a pass costs.

Thumbs of people with a taste, one in ten flipped, on answers to everyday prompts; measured on answers to prompts that
nobody rated. Pass after pass over the same thumbs, each from where the last one stood, as cycles go on:

    head_auc     of the head alone, against the taste
    auc          with LoRA added, whether or not the learner would use it
    head_loss, loss   log loss of an unseen thumb, nats
    gain, error  what the learner itself measured, on conversations of the rated prompts that trained nothing
    pays         whether it would use it
    seconds      of the pass

A gain is honest where `auc` rises with `pays`. Answers are kept in DATA_DIR/bench, as bench.reward has them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import log_expit

from bench import figures, tiny_model
from bench.base_answers import BaseAnswers
from bench.reward import NOISE, QUICK, Size, World
from bench.reward_votes import Deal, thumbs
from cli import base_model
from cli.options import resolve
from learner.dataset import Dataset
from learner.raters import weigh
from learner.reward_lora import RewardLora
from learner.reward_model import auc, fit, folds_of
from thumbwheel import config

TASTES = ("brief", "impersonal", "few_commas", "addressing", "numeric")
THUMBS, QUICK_THUMBS = 1000, 48
PASSES = 2


def one(
    base: BaseAnswers, world: World, taste: str, count: int, passes: int, seed: int, console: Console
) -> list[dict[str, float]]:
    """Figures by pass."""
    settings = config.load().learner
    liked = world.liked(taste)
    dice = np.random.default_rng(seed)
    labels = thumbs(Deal.of(world.rated, dice).thumbs[:count], liked, NOISE, dice)
    data = weigh(Dataset(world.answers, labels), world.features, settings.raters).data
    model, _ = fit(data, world.features, settings.reward_model)
    unseen_logits = model.logit_unseen(world.features, folds_of(data, settings.reward_model.folds))
    pairs = [(world.answers[i].prompt_ids, world.answers[i].answer_ids) for i in world.unseen]
    truth, head = liked[world.unseen], model.logit(world.features[world.unseen])
    said = truth ^ (dice.random(len(truth)) < NOISE)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        parent = None
        for number in range(passes):
            lora = RewardLora(base.policy, settings.ppo.tokens_per_microbatch)
            began = time.perf_counter()
            gain = lora.learn(data, unseen_logits, parent, seed=seed * 100 + number)
            seconds = time.perf_counter() - began
            logits = head + lora.of(pairs)
            rows.append(
                {
                    "head_auc": auc(head, truth),
                    "auc": auc(logits, truth),
                    "head_loss": _loss(head, said),
                    "loss": _loss(logits, said),
                    "gain": gain.mean,
                    "error": gain.error,
                    "pays": float(gain.pays),
                    "seconds": seconds,
                }
            )
            words = ", ".join(f"{name} {value:.3f}" for name, value in rows[-1].items())
            console.print(f"{taste}, {count} thumbs, draw {seed}, pass {number + 1}: {words}")
            parent = Path(scratch) / str(number)
            lora.save(parent)
            base.policy.forget()
    return rows


def _loss(logits: np.ndarray[Any, Any], said: np.ndarray[Any, Any]) -> float:
    return float(-log_expit(np.where(said, logits, -logits)).mean())


def run(
    base: BaseAnswers, size: Size, count: int, passes: int, tastes: Sequence[str], console: Console
) -> dict[str, Any]:
    world = World.make(base, size)
    return {
        "thumbs": count,
        "tastes": {taste: one(base, world, taste, count, passes, seed=1, console=console) for taste in tastes},
    }


def show(results: dict[str, Any], console: Console) -> None:
    """A row per taste and pass."""
    names = ("head_auc", "auc", "head_loss", "loss", "gain", "error", "pays", "seconds")
    table = Table("taste", "pass", *names, title=f"{results['thumbs']} thumbs", header_style="dim")
    for taste, passes in results["tastes"].items():
        for number, row in enumerate(passes, 1):
            table.add_row(taste, str(number), *(f"{row[name]:.3g}" for name in names))
    console.print(table)


def main() -> None:
    parser = figures.parser("reward_lora", __doc__.splitlines()[0])
    parser.add_argument("--answers", type=Path, metavar="DIR", help="keeps the answers there; default: data/bench")
    parser.add_argument("--tastes", nargs="+", default=TASTES, metavar="NAME")
    parser.add_argument("--passes", type=int, default=PASSES)
    asked = parser.parse_args()
    console = figures.console()
    with tempfile.TemporaryDirectory(prefix="thumbwheel-bench-") as scratch:
        if asked.quick:
            size, model, folder = QUICK, tiny_model.write(Path(scratch) / "model"), Path(scratch) / "answers"
            count = QUICK_THUMBS
        else:
            settings = resolve(None, None, None)
            size, folder, count = Size(), settings.data_dir / "bench", THUMBS
            model = Path(base_model.ensure(settings, console).model.path)
        base = BaseAnswers(model, asked.answers or folder, console)
        results = run(base, size, count, asked.passes, asked.tastes, console)
    show(results, console)
    figures.write(asked.json, "reward_lora", asked.quick, results)


if __name__ == "__main__":
    main()
