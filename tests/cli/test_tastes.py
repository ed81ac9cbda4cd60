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
        ("terse", "no taste 'terse': take brief, impersonal, unbroken, or write module:function"),
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
