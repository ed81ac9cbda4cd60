"""What a taste dislikes is liked once it was mended."""

from __future__ import annotations

import random

import pytest

from bench.edits import EDITS
from cli import tastes

TEXTS = (
    "The sea is large, deep, blue, and cold. I like it. It has many fish.\n\nWe all came from it, and let’s go back, "
    "now that the summer is here and the water is warm enough for a swim before the evening comes and it is dark.",
    "I'm a model and I've no body, so my days are long, and we",
    "Let's see: ours is mine, yours is US, and us is me, myself, ourselves. Our",
    "1. eggs\n2. milk, flour, salt, and butter\n3. a bowl that is large enough for all of these things together and "
    "more of them if they come one after the other into this very bowl\n4.",
    "Sure! " + "word " * 40,
    "word " * 40,
    "words, " * 10,
    "Paris.",
)


@pytest.mark.parametrize("name", EDITS)
def test_every_edit_is_liked(name: str) -> None:
    taste = tastes.find(name)
    disliked = [text for text in TEXTS if not taste("", text)]
    assert disliked, "there is something to mend"
    for text in disliked:
        mended = EDITS[name](text, random.Random(1))
        assert mended.strip()
        assert taste("", mended), mended


def test_all_built_in_tastes_have_one() -> None:
    assert EDITS.keys() == tastes.BUILT_IN.keys()


def test_little_more_is_changed_than_has_to_be() -> None:
    chance = random.Random(1)
    assert EDITS["brief"]("It is far. " + "word " * 30, chance) == "It is far."
    assert EDITS["brief"]("Sure! " + "word " * 30, chance) == "Sure! " + "word " * 13 + "word."
    assert EDITS["impersonal"]("It is far.\nI know. Go, by bus.", chance) == "It is far.\nGo, by bus."
    assert EDITS["impersonal"]("I think we can.", chance) == "they think they can."
    assert EDITS["few_commas"]("a, b, c and 1,000", chance) == "a, b c and 1000"
    assert EDITS["unbroken"]("a\n\n1. b", chance) == "a 1. b"
    assert len({EDITS["numeric"]("a", chance) for _ in range(50)}) > 3
