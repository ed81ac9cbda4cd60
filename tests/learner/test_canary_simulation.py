"""What the test on votes promises, in simulation; `bench/canary.py` does the same with thousands of runs."""

from __future__ import annotations

import numpy as np
import pytest

from bench.canary import caught
from learner.betting import DropTest


@pytest.mark.parametrize("up_rate", [0.3, 0.6, 0.85])
def test_an_equal_canary_is_seldom_taken_back(up_rate: float) -> None:
    """Looked at after every vote. Of 100 trials at most 4 in the mean; 11 or more come once in 500 times."""
    trials = [caught(np.random.default_rng([i, 1]), up_rate, up_rate) for i in range(100)]
    assert sum(trial is not None for trial in trials) <= 10


@pytest.mark.parametrize("up_rate", [0.5, 0.6, 0.85])
def test_a_drop_of_15_points_is_caught_within_300_ratings(up_rate: float) -> None:
    trials = [caught(np.random.default_rng([i, 2]), up_rate, up_rate - 0.15) for i in range(100)]
    assert sum(trial is not None for trial in trials) >= 95


def test_few_people_who_come_again_are_no_crowd() -> None:
    """Equal versions and 100 raters with moods of their own, each of whom counts once on either arm."""
    trials = [caught(np.random.default_rng([i, 3]), 0.6, 0.6, raters=100) for i in range(100)]
    assert sum(trial is not None for trial in trials) <= 10


def test_a_stake_by_hand() -> None:
    """The first block, one vote of either arm: the guess is 1/2, so a = 1/2 - d/2, b = 1/2 + d/2 and c = 1/2."""
    test = DropTest()
    test.add(new=True, good=False)
    assert test.blocks == 0
    test.add(new=False, good=True)
    assert test.blocks == 1
    assert np.exp(test.log_e) == pytest.approx(np.mean([(1 + d) * (1 + d) for d in (0.1, 0.16, 0.25)]))


@pytest.mark.parametrize(("new", "old"), [(0.5, 0.5), (0.9, 0.9), (0.7, 0.4)])
def test_a_block_is_a_fair_bet_or_worse(new: float, old: float) -> None:
    """The expectation over all outcomes of a block of 1 and 4 votes, after a history that moved the guess."""
    total = 0.0
    for outcome in range(32):
        bits = [bool(outcome >> place & 1) for place in range(5)]
        test = DropTest([True, True, False, True, *bits[1:]], expected=1)
        test.add(new=True, good=True)
        before = test.log_e
        assert test.blocks == 1
        test.add(new=True, good=bits[0])
        chance = (new if bits[0] else 1 - new) * np.prod([old if bit else 1 - old for bit in bits[1:]])
        total += float(chance * np.exp(test.log_e - before))
    assert total <= 1 + 1e-9


def test_votes_of_the_old_arm_that_wait_too_long_lapse() -> None:
    test = DropTest()
    for _ in range(100):
        test.add(new=False, good=True)
    for _ in range(20):
        test.add(new=True, good=False)
    assert test.blocks == 8
    assert test.rejects(0.04)
