"""The reward bench on answers whose features tell the taste, its memory of answers, and one quick run of the whole."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from bench import base_answers
from bench.base_answers import BaseAnswers, Said, Tokens
from bench.figures import Spread
from bench.reward import AUC_TARGETS, Size, World, _answer, _columns, one_draw, refit, surely_positive, targets
from bench.reward_votes import SAMPLES

SIZE = Size(rated=40, unseen=40, unseen_samples=4, thumbs=(40, 160), pairs=40, mended=40, seeds=2, known=40, new=10)


class Base:
    """Of an answer's features the first is how brief it is, as the taste sees it, with some doubt."""

    def __init__(self) -> None:
        self.computed = 0

    def encode(self, text: str) -> tuple[int, ...]:
        return (len(text.split()), 0)

    def features(self, answers: Iterable[Tokens]) -> NDArray[np.float64]:
        return np.array([self._row(answer) for _, answer in answers])

    def compute(self, answers: Sequence[Tokens]) -> NDArray[np.float64]:
        self.computed += len(answers)
        return self.features(answers)

    def _row(self, answer: tuple[int, ...]) -> NDArray[np.float64]:
        row = np.random.default_rng(answer).normal(size=12)
        row[0] += 3.0 * (answer[0] <= 25)
        row[-2:] = 0
        return row


def world(base: Base) -> World:
    dice = np.random.default_rng(0)
    said = []
    for number in range(SIZE.rated * SAMPLES + SIZE.unseen * SIZE.unseen_samples):
        prompt = number // SAMPLES if number < SIZE.rated * SAMPLES else -number // SIZE.unseen_samples
        words = int(dice.integers(10, 40))
        said.append(Said(f"prompt {prompt}", f"word{number} " * words, (1,), (words, number)))
    rated = np.arange(SIZE.rated * SAMPLES).reshape(SIZE.rated, SAMPLES)
    features = base.features(each.tokens for each in said)
    answers = [_answer(f"r{i}", each) for i, each in enumerate(said)]
    return World(said, answers, features, rated, np.arange(rated.size, len(said)))


def test_a_draw_learns_from_votes_and_is_measured_where_nobody_voted() -> None:
    base = Base()
    plain = world(base)
    liked = plain.liked("brief")
    more, mended = plain.mended(cast(BaseAnswers, base), "brief", SIZE.mended)
    by_thumbs, pairs = one_draw(more, liked, mended, SIZE, seed=1)
    assert by_thumbs[160]["auc"] > 0.95 > by_thumbs[160]["auc_votes"] > 0.75
    assert by_thumbs[160]["auc"] >= by_thumbs[40]["auc"] - 0.05
    assert by_thumbs[160]["ece_votes"] < 0.15
    # Words tell it nothing: each answer has one of its own. Its length does not count, for rows have length 1.
    assert 0.3 < by_thumbs[160]["peer_auc"] < 0.7
    assert by_thumbs[160]["auc_to_peer"] == pytest.approx(by_thumbs[160]["auc"] / by_thumbs[160]["peer_auc"])
    assert (pairs["rankings"], pairs["edits"]) == (pytest.approx(40), 40)
    assert pairs["gain_edits"] == pytest.approx(pairs["thumbs_edits"] - pairs["thumbs"])
    assert one_draw(more, liked, mended, SIZE, seed=1)[1] == pairs
    assert one_draw(more, liked, mended, SIZE, seed=2)[1] != pairs


def test_only_rated_answers_that_are_disliked_are_mended() -> None:
    base = Base()
    plain = world(base)
    liked = plain.liked("brief")
    more, pairs = plain.mended(cast(BaseAnswers, base), "brief", 15)
    assert [edit for edit, _ in pairs] == list(range(len(plain.said), len(plain.said) + 15))
    for edit, place in pairs:
        assert not liked[place]
        assert place in plain.rated
        assert more.liked("brief")[edit]
        assert more.answers[edit].conversation == plain.answers[place].conversation
        assert (more.features[edit] == base.features([more.said[edit].tokens])[0]).all()
    assert len({place for _, place in pairs}) == 15
    assert len(more.answers) == len(more.said) == len(more.features)


def test_a_refit_computes_the_new_answers_alone() -> None:
    base = Base()
    plain = world(base)
    timed = refit(cast(BaseAnswers, base), plain, plain.liked("brief"), SIZE)
    assert base.computed == 1 + SIZE.seeds * SIZE.new
    assert timed["all_seconds"].runs == SIZE.seeds
    assert timed["all_seconds"].high >= timed["fit_seconds"].high > 0


# --- verdicts


def test_a_gain_is_sure_if_it_is_large_beside_its_spread() -> None:
    # Three draws: the mean must exceed 2.92 standard errors.
    assert surely_positive([1.0, 2.0, 3.0])  # 2 > 2.92 * 1 / 1.73 = 1.69
    assert not surely_positive([0.0, 2.0, 4.0])  # 2 < 3.37
    assert not surely_positive([-1.0, -2.0, -3.0])
    assert not surely_positive([5.0])
    assert not surely_positive([])


def test_targets_go_by_means_and_what_was_not_measured_is_not_met() -> None:
    def measured(auc: Sequence[float], ece: float, gain: float) -> dict[str, Any]:
        thumbs = _columns([{"auc": one, "ece_votes": ece, "peer_auc": float("nan")} for one in auc])
        assert "peer_auc" not in thumbs
        pairs = _columns([{"gain_rankings": gain + one / 1000, "gain_edits": -gain} for one in auc])
        return {"thumbs": {200: thumbs, 400: thumbs}, "pairs": pairs}

    found = {taste: measured([0.7, 0.75, 0.96], 0.081, 0.1) for taste in AUC_TARGETS}
    found["brief"] = measured([0.89, 0.89, 0.93], 0.079, 0.1)  # the median is below .9, the mean above
    found["few_commas"] = {"thumbs": {}, "pairs": {}}
    rows = {row["name"]: row for row in targets(found, {"all_seconds": Spread(10, 9, 31, 3)})}
    assert rows["brief: AUC at 200 thumbs"]["met"]
    assert rows["brief: ECE at 200 thumbs"]["met"]
    assert rows["impersonal: AUC at 400 thumbs"]["met"]
    assert not rows["impersonal: ECE at 400 thumbs"]["met"]
    assert rows["impersonal: AUC gained by rankings"]["met"]
    assert not rows["impersonal: AUC gained by edits"]["met"]
    assert (rows["few_commas: AUC at 400 thumbs"]["met"], rows["few_commas: AUC at 400 thumbs"]["found"]) == (
        False, None,
    )  # fmt: skip
    assert not rows["few_commas: AUC gained by edits"]["met"]
    assert not rows["refit: seconds, the slowest"]["met"]


# --- what is kept


def test_answers_are_sampled_once_and_features_computed_once(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled, computed = [], []

    async def sample(
        model: Path, wanted: Sequence[tuple[str, int]], progress: Callable[[int], None]
    ) -> list[list[Said]]:
        sampled.append(list(wanted))
        for _, samples in wanted:
            progress(samples)
        return [[Said(prompt, f"{i}", (1, 2), (3, i)) for i in range(samples)] for prompt, samples in wanted]

    def compute(self: BaseAnswers, answers: Sequence[Tokens]) -> NDArray[np.float32]:
        computed.extend(answers)
        return np.array([[*prompt, *answer] for prompt, answer in answers], dtype=np.float32)

    monkeypatch.setattr(base_answers, "_sample", sample)
    monkeypatch.setattr(BaseAnswers, "compute", compute)

    def base() -> BaseAnswers:
        return BaseAnswers(tiny_model, tmp_path / "kept", Console(quiet=True))

    first = base().sampled([("a", 2), ("b", 1)])
    assert base().sampled([("a", 2), ("b", 1)]) == first
    assert len(sampled) == 1
    assert base().sampled([("a", 1)])[0] == first[0][:1]
    assert len(sampled) == 2, "other questions"

    one, two = first[0][0].tokens, first[0][1].tokens
    assert base().features([two, one, two]).tolist() == [[1, 2, 3, 1], [1, 2, 3, 0], [1, 2, 3, 1]]
    assert computed == [two, one]
    assert base().features([one]).tolist() == [[1, 2, 3, 0]]
    assert computed == [two, one]
    monkeypatch.setenv("THUMBWHEEL_LEARNER__LORA__LAYERS", "0.25")
    base().features([one])
    assert computed == [two, one, one], "features come from another layer now"


# --- the whole


@pytest.mark.slow
async def test_a_quick_run(tmp_path: Path) -> None:
    file, kept = tmp_path / "found.json", tmp_path / "answers"
    for _ in range(2):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.reward", "--quick", "--json", str(file), "--answers", str(kept),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), 600)
        assert process.returncode == 0, out.decode()
    assert b"answers of the base" not in out, "the second run finds them"
    found = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert found["tastes"].keys() >= AUC_TARGETS.keys()
    assert found["refit"]["all_seconds"]["runs"] == 2
    assert all(isinstance(row["met"], bool) for row in found["targets"])
