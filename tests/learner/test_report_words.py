"""What words bring is counted exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from learner.report_words import KEPT_TURNS, LEAST_ANSWERS, SHOWN, Spoken, effects, splitter


def test_a_word_brings_the_sum_of_its_tokens_on_the_mean_over_its_answers() -> None:
    spoken = [
        Spoken("t0", [("Brief", 2), ("no", 1), ("brief", 1)], np.array([1.0, 2.0, -1.0, 3.0])),  # brief: 6, no: -1
        Spoken("t1", [("brief", 1), ("no", 2)], np.array([3.0, -2.0, -3.0])),  # brief: 3, no: -5
        Spoken("t2", [("no", 1), ("BRIEF", 1)], np.array([0.0, -3.0])),  # brief: -3, no: 0
    ]
    brief, no = effects(spoken)
    assert brief == ("brief", pytest.approx(2.0), 3, ("t0", "t1", "t2"))
    assert no == ("no", pytest.approx(-2.0), 3, ("t0", "t1", "t2"))


def test_rare_words_are_left_out_and_the_most_telling_come_first() -> None:
    spoken = [Spoken(f"t{i}", [(f"w{j}", 1) for j in range(60)], np.arange(60) - 29.5) for i in range(20)]
    spoken += [Spoken(f"t{i % 2}", [("rare", 1)], np.array([99.0])) for i in range(9)]  # nine answers of two turns
    found = effects(spoken)
    assert [effect.text for effect in found[:2]] == ["w59", "w58"]
    assert [effect.text for effect in found[-2:]] == ["w1", "w0"]
    assert len(found) == 2 * SHOWN
    assert all(effect.answers == 20 and len(effect.turns) == KEPT_TURNS for effect in found)
    assert effects(spoken[: LEAST_ANSWERS - 1]) == []


class Pieces:
    """A tokenizer of a few tokens."""

    vocabulary = ("Ġyou", "'t", "Ġdon", ",", "Ċ", "Ġ", "able", "<end>")
    plain = (" you", "'t", " don", ",", "\n", " ", "able", "<end>")

    def convert_ids_to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return [self.vocabulary[token] for token in tokens]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.plain[token] for token in tokens)


def test_tokens_make_words_and_punctuation_stands_alone() -> None:
    split = splitter(Pieces())
    assert split([2, 1, 0, 6, 3, 4, 5, 0]) == [
        ("don't", 2), ("youable", 2), (",", 1), ("↵", 1), ("␣", 1), ("you", 1),
    ]  # fmt: skip
    assert split([3, 6]) == [(",", 1), ("able", 1)]
    assert split([]) == []
