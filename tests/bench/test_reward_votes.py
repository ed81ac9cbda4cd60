"""Votes as the reward bench draws them."""

from __future__ import annotations

import numpy as np
import pytest

from bench.reward_votes import GROUP, SAMPLES, Deal, edits, rankings, thumbs
from cli.raters import RATERS

PROMPTS = 20
PLACES = np.arange(PROMPTS * SAMPLES).reshape(PROMPTS, SAMPLES)


def dice(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_deal_asks_every_prompt_before_any_again_and_ranks_other_answers() -> None:
    deal = Deal.of(PLACES, dice())
    assert sorted(deal.thumbs) == list(range(PLACES.size))
    for start in range(0, PLACES.size, PROMPTS):
        assert sorted(deal.thumbs[start : start + PROMPTS] // SAMPLES) == list(range(PROMPTS))
    assert deal.groups.shape == (2 * PROMPTS, GROUP)
    assert all(len(set(group // SAMPLES)) == 1 for group in deal.groups), "of one prompt each"
    assert sorted([*deal.groups.ravel(), *deal.thumbs[:PROMPTS]]) == list(range(PLACES.size))
    assert (Deal.of(PLACES, dice()).groups == deal.groups).all()
    assert (Deal.of(PLACES, dice(2)).groups != deal.groups).any()


def test_thumbs_say_what_the_taste_says_but_for_their_noise() -> None:
    liked = dice(5).random(4000) < 0.3
    places = dice(6).permutation(4000)
    right = thumbs(places, liked, 0.0, dice())
    assert [label.answer for label in right] == places.tolist()
    assert [bool(label.value) for label in right] == liked[places].tolist()
    assert [label.at for label in right] == list(range(4000))
    assert len({label.rater for label in right}) == RATERS
    wrong = [bool(label.value) != liked[label.answer] for label in thumbs(places, liked, 0.1, dice())]
    assert 0.085 < np.mean(wrong) < 0.115  # 3 standard deviations
    assert 0.05 < np.mean([flip for flip, label in zip(wrong, right, strict=True) if label.value]) < 0.15


def test_a_ranking_counts_once_and_is_sent_only_where_somebody_prefers_something() -> None:
    groups = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]])
    liked = np.isin(np.arange(12), [0, 1, 2, 4, 9, 11])  # all, one, none, two
    pairs = rankings(groups, liked, 0.0, 10, dice())
    assert {(pair.better, pair.worse) for pair in pairs} == {(4, 3), (4, 5), (9, 10), (11, 10)}
    assert {pair.share for pair in pairs} == {0.5}
    assert [pair.rater for pair in pairs] == ["rater 0", "rater 0", "rater 1", "rater 1"]
    assert len(rankings(groups, liked, 0.0, 1, dice())) == 2
    # Whoever takes every answer for the opposite ranks the other way round.
    assert {(pair.better, pair.worse) for pair in rankings(groups, liked, 1.0, 10, dice())} == {
        (3, 4), (5, 4), (10, 9), (10, 11),
    }  # fmt: skip


@pytest.mark.parametrize(("noise", "turned"), [(0.0, False), (1.0, True)])
def test_edits_are_preferred_to_what_they_mend(noise: float, turned: bool) -> None:
    mended = [(100 + place, place) for place in range(30)]
    pairs = edits(mended, noise, 20, dice())
    assert len(pairs) == len({(pair.better, pair.worse) for pair in pairs}) == 20
    assert all(pair.edit and pair.share == 1 for pair in pairs)
    assert all((pair.better < pair.worse) is turned and abs(pair.better - pair.worse) == 100 for pair in pairs)
    assert len(edits(mended, noise, 50, dice())) == 30


def test_one_edit_in_ten_is_a_mistake() -> None:
    pairs = edits([(5000 + place, place) for place in range(4000)], 0.1, 4000, dice())
    assert 0.085 < np.mean([pair.better < pair.worse for pair in pairs]) < 0.115
