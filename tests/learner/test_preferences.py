from __future__ import annotations

from collections import Counter

import pytest

from learner.dataset import Answer, Dataset, Label, Pair
from learner.preferences import Preference, Verdict, preferences, verdicts

LONGEST = 10


def answer(number: int, prompt: int = 1, length: int = 2) -> Answer:
    return Answer(f"a{number}", f"c{prompt}", (prompt,), (number,) * length, (-1.0,) * length, "base", 8, True)


def keys(data: Dataset) -> frozenset[str]:
    return frozenset(answer.key for answer in data.answers)


def pairs_of(data: Dataset, fresh: frozenset[str] | None = None, seed: int = 0) -> list[tuple[int, int]]:
    found = preferences(data, keys(data) if fresh is None else fresh, LONGEST, seed)
    return [(each.chosen_ids[0], each.rejected_ids[0]) for each in found]


def verdicts_of(data: Dataset, fresh: frozenset[str] | None = None, seed: int = 0) -> dict[int, bool]:
    found = verdicts(data, keys(data) if fresh is None else fresh, LONGEST, seed)
    return {each.completion_ids[0]: each.label for each in found}


def test_an_edit_is_preferred_to_what_it_mends() -> None:
    data = Dataset([answer(1), answer(2)], pairs=[Pair(1, 0, 1.0, "r", edit=True)])
    assert preferences(data, keys(data), LONGEST, 0) == [Preference((1,), (2, 2), (1, 1))]


def test_opposite_thumbs_on_answers_to_one_prompt_are_a_preference() -> None:
    data = Dataset([answer(1), answer(2), answer(3, prompt=2)], [Label(0, 1, "r"), Label(1, 0, "r"), Label(2, 0, "r")])
    assert pairs_of(data) == [(1, 2)]


def test_every_answer_of_the_longer_side_is_in_a_pair_once() -> None:
    data = Dataset([answer(i) for i in range(1, 6)], [Label(i, i < 2, "r") for i in range(5)])
    found = pairs_of(data)
    assert sorted(worse for _, worse in found) == [3, 4, 5]
    assert {better for better, _ in found} == {1, 2}


def test_ranked_answers_are_not_paired_again_by_what_their_ranks_say() -> None:
    data = Dataset([answer(1), answer(2)], pairs=[Pair(0, 1, 1.0, "r")])
    assert pairs_of(data) == [(1, 2)]


def test_one_pair_of_a_ranking_whichever_the_seed() -> None:
    three = [(0, 1), (0, 2), (1, 2)]
    data = Dataset([answer(1), answer(2), answer(3)], pairs=[Pair(b, w, 1 / 3, "r") for b, w in three])
    drawn = Counter()
    for seed in range(300):
        found = pairs_of(data, seed=seed)
        assert len(found) == 1
        drawn[found[0]] += 1
    assert set(drawn) == {(1, 2), (1, 3), (2, 3)}
    assert min(drawn.values()) > 60


def test_a_pair_needs_an_answer_of_the_batch() -> None:
    data = Dataset([answer(1), answer(2)], [Label(0, 1, "r"), Label(1, 0, "r")])
    assert pairs_of(data, frozenset()) == []
    assert pairs_of(data, frozenset({"a2"})) == [(1, 2)]


def test_a_verdict_is_of_an_answer_of_the_batch() -> None:
    data = Dataset([answer(1), answer(2)], [Label(0, 1, "r"), Label(1, 0, "r")])
    assert verdicts_of(data) == {1: True, 2: False}
    assert verdicts_of(data, frozenset({"a2"})) == {2: False}
    assert verdicts(data, frozenset({"a2"}), LONGEST, 0) == [Verdict((1,), (2, 2), False)]


def test_raters_who_disagree_evenly_say_nothing() -> None:
    data = Dataset([answer(1)], [Label(0, 1, "r"), Label(0, 0, "s")])
    assert verdicts_of(data) == {}


def test_ranks_and_edits_are_verdicts_too() -> None:
    data = Dataset([answer(1), answer(2)], pairs=[Pair(0, 1, 1.0, "r")])
    assert verdicts_of(data) == {1: True, 2: False}


def test_answers_that_are_too_long_or_empty_are_left_out() -> None:
    data = Dataset(
        [answer(1, length=LONGEST + 1), answer(2), answer(3, length=0), answer(4)],
        [Label(0, 1, "r"), Label(1, 0, "r"), Label(2, 1, "r"), Label(3, 1, "r")],
    )
    assert pairs_of(data) == [(4, 2)]
    assert verdicts_of(data) == {2: False, 4: True}


@pytest.mark.parametrize(("weight", "kept"), [(0.0, 0), (0.25, 25), (1.0, 100)])
def test_votes_that_weigh_less_are_there_less_often(weight: float, kept: int) -> None:
    answers = [answer(number) for number in range(100)]
    data = Dataset(answers, [Label(place, place % 2, "r") for place in range(100)], weights={"r": weight})
    assert len(verdicts_of(data)) == kept
    assert len(verdicts_of(data, seed=1)) == kept


def test_four_stars_are_there_half_as_often_as_five() -> None:
    answers = [answer(number) for number in range(100)]
    assert len(verdicts_of(Dataset(answers, [Label(place, 0.75, "r") for place in range(100)]))) == 50


def test_nothing_is_made_of_nothing() -> None:
    assert pairs_of(Dataset()) == []
    assert verdicts_of(Dataset()) == {}
