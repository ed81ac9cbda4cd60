"""What bad raters do to the reward model, with every vote as loud as the next and with raters weighed.

    colluders  one in eleven raters votes ten times as often as the others, up wherever one feature is high
    flips      one in five of everybody's votes, at random, is the opposite of what was meant

Features are Gaussian, and what people like is a direction in them that has no share in the pushed feature. Accuracy is
that of the model's sign on answers that nobody rated; the push is the pushed feature's weight in standard deviations of
the scores. Both are given beside those of a model of the honest votes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench import figures
from bench.figures import Spread
from learner.dataset import Answer, Dataset, Label
from learner.raters import weigh
from learner.reward_model import fit
from thumbwheel.config import Config

FEATURES = 16
"""Of what an answer says; two of its form, which are the same for all, come after them."""
HONEST = 40
VOTES = 100
"""Of each of them: together they fill the window that the reward model is fitted on."""
COLLUDERS = 4
LOUDER = 10
NOISE = 0.1
FLIPS = 0.2
UNSEEN = 4000
SEEDS = 5


@dataclass(frozen=True, slots=True)
class World:
    """Answers, what is liked of them, and what was said. The last UNSEEN answers have no votes."""

    answers: list[Answer]
    features: NDArray[np.float64]  # (N, FEATURES + 2)
    liked: NDArray[np.bool_]  # (N,)
    honest: list[Label]
    colluding: list[Label]

    @classmethod
    def make(cls, seed: int, flipped: float, votes: int = VOTES) -> World:
        dice = np.random.default_rng(seed)
        rated = HONEST * votes
        pushed = COLLUDERS * votes * LOUDER
        count = rated + pushed + UNSEEN
        x = dice.normal(size=(count, FEATURES))
        liked = x @ np.append(dice.normal(size=FEATURES - 1), 0.0) > 0
        said = liked ^ (dice.random(count) < flipped)
        return cls(
            [Answer(f"r{i}", f"conversation {i}", (1,), (2,), (-1.0,), "base", 48, True) for i in range(count)],
            np.hstack([x, np.zeros((count, 2))]),
            liked,
            [Label(i, float(said[i]), f"honest {i % HONEST}") for i in range(rated)],
            [Label(i, float(x[i, -1] > 0), f"colluder {i % COLLUDERS}") for i in range(rated, rated + pushed)],
        )

    def measure(self, labels: Sequence[Label], *, weighed: bool) -> tuple[float, float]:
        """Accuracy on unseen answers, and the push."""
        data = Dataset(self.answers, list(labels))
        settings = Config().learner
        if weighed:
            data = weigh(data, self.features, settings.raters).data
        model, _ = fit(data, self.features, settings.reward_model)
        scores = model.score(self.features[-UNSEEN:])
        accuracy = float(((scores > 0) == self.liked[-UNSEEN:]).mean())
        return accuracy, float(model.weight[FEATURES - 1] / model.std[FEATURES - 1] / scores.std())


def collusion(seed: int, votes: int = VOTES) -> dict[str, float]:
    """What colluders move."""
    world = World.make(seed, NOISE, votes)
    accuracy, push = world.measure(world.honest, weighed=False)
    found = {"accuracy, honest votes alone": accuracy}
    for name, weighed in (("unweighed", False), ("weighed", True)):
        moved, pushed = world.measure([*world.honest, *world.colluding], weighed=weighed)
        found |= {f"points lost, {name}": 100 * (accuracy - moved), f"push, {name}": pushed - push}
    return found


def flips(seed: int, votes: int = VOTES) -> dict[str, float]:
    """What random mistakes cost."""
    clean, noisy = World.make(seed, 0.0, votes), World.make(seed, FLIPS, votes)
    accuracy, _ = clean.measure(clean.honest, weighed=True)
    moved, _ = noisy.measure(noisy.honest, weighed=True)
    return {"accuracy, no flips": accuracy, "points lost, flips": 100 * (accuracy - moved)}


def run(quick: bool, console: Console) -> dict[str, Any]:
    votes, seeds = (VOTES // 4, 1) if quick else (VOTES, SEEDS)
    found: dict[str, dict[str, Spread]] = {}
    for title, experiment in (("colluders", collusion), ("flips", flips)):
        runs = [experiment(seed, votes) for seed in range(seeds)]
        found[title] = {key: Spread.of([each[key] for each in runs]) for key in runs[0]}
        console.print(title, {key: str(value) for key, value in found[title].items()})
    return found


def main() -> None:
    asked = figures.options("raters", __doc__.splitlines()[0])
    figures.write(asked.json, "raters", asked.quick, run(asked.quick, Console(highlight=False)))


if __name__ == "__main__":
    main()
