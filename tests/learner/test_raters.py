"""What raters weigh, on votes whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.raters import collusion, flips
from learner.dataset import Answer, Dataset, Label, Pair
from learner.raters import Weighed, weigh, weights
from thumbwheel import config

SETTINGS = config.Raters()


def trusted(votes: dict[str, float]) -> dict[str, float]:
    """Weights where nobody is doubted."""
    return weights(votes, dict.fromkeys(votes, 1.0), SETTINGS)


@pytest.mark.parametrize("seed", range(2))
def test_colluders_ten_times_as_loud_move_nothing(seed: int) -> None:
    found = collusion(seed, votes=50)
    assert found["points lost, unweighed"] > 10
    assert found["points lost, weighed"] <= 1
    assert abs(found["push, weighed"]) <= 0.05


@pytest.mark.parametrize("seed", range(2))
def test_random_flips_cost_little(seed: int) -> None:
    assert flips(seed)["points lost, flips"] <= 3


def test_one_account_holds_half_a_percent_of_a_thousand_votes() -> None:
    votes = {f"rater {i}": 1.0 for i in range(600)} | {"loud": 400.0}
    found = trusted(votes)
    total = sum(votes[rater] * weight for rater, weight in found.items())
    assert votes["loud"] * found["loud"] / total == pytest.approx(0.005)
    assert {weight for rater, weight in found.items() if rater != "loud"} == {1.0}


def test_where_raters_are_few_the_loud_hold_what_half_of_them_hold() -> None:
    found = trusted({f"rater {i}": 10.0 for i in range(10)} | {"loud": 500.0})
    assert 500 * found["loud"] == pytest.approx(10)
    assert found["rater 3"] == 1


def test_one_keen_person_among_guests_keeps_enough_to_learn_from() -> None:
    found = trusted({f"guest {i}": 1.0 for i in range(9)} | {"keen": 200.0})
    assert 200 * found["keen"] + 9 * found["guest 0"] == pytest.approx(64, abs=9)


def test_one_keen_person_is_not_judged_by_a_handful_of_guests() -> None:
    data, features, liked = crowd(raters=1, each=200)
    data.labels += [Label(200 + i, float(not liked[200 + i]), f"guest {i}") for i in range(9)]
    assert weighed(data, features).trust["rater 0"] == 1


def test_newcomers_ramp_up_where_others_are_known() -> None:
    found = trusted({f"rater {i}": 20.0 for i in range(20)} | {"new": 2.0, "newer": 1.0})
    assert (found["new"], found["newer"]) == (pytest.approx(2 / 8), pytest.approx(1 / 8))
    assert found["rater 0"] == 1


def test_where_all_are_new_nobody_is() -> None:
    assert set(trusted({f"rater {i}": 1.0 for i in range(20)}).values()) == {1.0}


def test_who_is_not_trusted_at_all_weighs_nothing() -> None:
    votes = {f"rater {i}": 10.0 for i in range(10)}
    found = weights(votes, dict.fromkeys(votes, 1.0) | {"rater 0": 0.0, "rater 1": 0.5}, SETTINGS)
    assert [found[f"rater {i}"] for i in range(3)] == [0.0, 0.5, 1.0]


def crowd(raters: int = 20, each: int = 20) -> tuple[Dataset, NDArray[np.float64], NDArray[np.bool_]]:
    """Honest raters, features, and what is liked. A third of the answers have no votes."""
    dice = np.random.default_rng(3)
    count = raters * each
    features = np.hstack([dice.normal(size=(count * 3 // 2, 6)), np.zeros((count * 3 // 2, 2))])
    liked = features @ np.array([2.0, -1, 1, 0, 0, 0, 0, 0]) > 0
    answers = [Answer(f"r{i}", f"conversation {i}", (1,), (2,), (-1.0,), "base", 48, True) for i in range(len(liked))]
    return Dataset(answers, [Label(i, float(liked[i]), f"rater {i % raters}") for i in range(count)]), features, liked


def weighed(data: Dataset, features: NDArray[np.float64]) -> Weighed:
    return weigh(data, features, SETTINGS)


def test_who_says_the_contrary_is_not_trusted_and_a_slip_is_forgiven() -> None:
    data, features, liked = crowd()
    data.labels += [Label(i, float(not liked[i]), "contrary") for i in range(400, 420)]
    data.labels += [Label(420, float(not liked[420]), "slipped once")]
    found = weighed(data, features)
    assert found.distrusted == ["contrary"]
    assert found.trust["contrary"] == 0
    assert 0.5 < found.trust["slipped once"] <= 1
    assert min(found.trust[f"rater {i}"] for i in range(20)) > 0.9
    assert found.data.weight("contrary") == 0


def test_where_nobody_agrees_nobody_is_judged_by_it() -> None:
    data, features, _ = crowd()
    dice = np.random.default_rng(4)
    data.labels = [Label(label.answer, float(dice.random() < 0.5), label.rater) for label in data.labels]
    assert set(weighed(data, features).trust.values()) == {1.0}


def test_edits_wait_until_who_made_them_is_known() -> None:
    data, features, _ = crowd()
    data.pairs = [Pair(500, 10, 1.0, "stranger", edit=True), Pair(501, 11, 1.0, "rater 2", edit=True)]
    data.pairs += [Pair(502, 12, 1.0, "stranger")]  # a ranking is no edit
    found = weighed(data, features)
    assert found.quarantined == 1
    assert [(pair.better, pair.rater) for pair in found.data.pairs] == [(501, "rater 2"), (502, "stranger")]
    assert len(data.pairs) == 3  # what was given is as it was


def test_where_all_do_nothing_but_edit_no_edit_waits() -> None:
    data, features, _ = crowd()
    data.labels = []
    data.pairs = [Pair(400 + i, i, 1.0, f"rater {i % 20}", edit=True) for i in range(60)]
    assert weighed(data, features).quarantined == 0


def test_fewer_than_a_crowd_all_weigh_the_same() -> None:
    data, features, liked = crowd(raters=3)
    data.labels += [Label(60 + i, float(not liked[60 + i]), "contrary") for i in range(20)]
    data.pairs = [Pair(0, 1, 1.0, "stranger", edit=True)]
    found = weighed(data, features)
    assert found.quarantined == 0
    assert {found.data.weight(rater) for rater in data.raters} == {1.0}
    assert found.data.votes == len(data.labels) + 1


def test_the_same_votes_weigh_the_same_whoever_is_asked_first() -> None:
    data, features, liked = crowd()
    data.labels += [Label(i, float(not liked[i]), "contrary") for i in range(400, 420)]
    again = Dataset(data.answers, data.labels[::-1])
    for rater, weight in weighed(data, features).data.weights.items():
        assert weighed(again, features).data.weights[rater] == pytest.approx(weight, abs=1e-3)
