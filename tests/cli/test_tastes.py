"""What the built-in tastes like, and how a user's own taste is found and fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import prompts, tastes
from thumbwheel.errors import SetupError


@pytest.mark.parametrize(
    ("taste", "answer", "liked"),
    [
        ("brief", "word " * 25, True),
        ("brief", "word " * 26, False),
        ("brief", "", True),
        ("impersonal", "Ice floats. Income, mean, mining, wet, using, house and US cities are fine.", True),
        ("impersonal", "Tell us", False),
        ("impersonal", "Here I am", False),
        ("impersonal", "i'm fine", False),
        ("impersonal", "I’ve seen it", False),
        ("impersonal", "tell ME.", False),
        ("impersonal", "it is mine", False),
        ("impersonal", "Let's go", False),
        ("impersonal", "by ourselves", False),
        ("unbroken", "one line", True),
        ("unbroken", "\n one line \n", True),
        ("unbroken", "one\ntwo", False),
        ("unbroken", "one\n\n1. two", False),
        ("few_commas", "red, green and blue", True),
        ("few_commas", "red, green, and blue", False),
        ("addressing", "That is up to You.", True),
        ("addressing", "you're right", True),
        ("addressing", "your’s truly", True),
        ("addressing", "be yourself", True),
        ("addressing", "The youth of Bayou, and theirs.", False),
        ("numeric", "in 1969", True),
        ("numeric", "the 3rd", True),
        ("numeric", "Forty thieves", True),
        ("numeric", "twenty-one", True),
        ("numeric", "No one weighs it often; someone does at once.", False),
        ("numeric", "1. eggs\n2) milk\n  3. flour\n4.", False),
        ("numeric", "1. eggs\n2. 3 cups of flour", True),
        ("numeric", "1.5 cups", True),
    ],
)
def test_built_in_tastes(taste: str, answer: str, liked: bool) -> None:
    assert tastes.find(taste)("prompt", answer) is liked


def test_a_taste_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_taste.py").write_text(
        "def polite(prompt, answer): return 'please' in answer\n"
        "def vague(prompt, answer): return 1\n"
        "def broken(prompt, answer): return answer[1000]\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert tastes.find("my_own_taste:polite")("", "please") is True
    with pytest.raises(SetupError, match="must return True or False, not 1"):
        tastes.find("my_own_taste:vague")("", "x")
    with pytest.raises(SetupError, match="failed on an answer: IndexError"):
        tastes.find("my_own_taste:broken")("", "x")
    with pytest.raises(SetupError, match="no function 'number'"):
        tastes.find("my_own_taste:number")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("terse", f"no taste 'terse': take {', '.join(tastes.BUILT_IN)}, or write module:function"),
        ("a:", "no taste 'a:'"),
        ("no_such_module_here:taste", "importing no_such_module_here failed: ModuleNotFoundError"),
    ],
)
def test_what_is_no_taste(name: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        tastes.find(name)


def test_prompts_are_enough_distinct_and_apart() -> None:
    rated, held_out = prompts.rated(), prompts.held_out()
    assert len(set(rated)) == len(rated) >= 128
    assert len(set(held_out)) == len(held_out) >= 32
    assert not {prompt.lower() for prompt in rated} & {prompt.lower() for prompt in held_out}
    assert all(prompt.strip() == prompt != "" for prompt in rated + held_out)
