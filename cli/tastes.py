"""Tastes: what a simulated rater likes.

A taste is a function of a prompt and an answer. Some are built in: `brief`, `unbroken` and `few_commas` look at the
form, `impersonal`, `addressing` and `numeric` at what is said. Any other is named ``module:function``.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path

from thumbwheel.errors import SetupError

Taste = Callable[[str, str], bool]

# Whole words, in any case but for the country US. Contractions (I'm, I've, we'll) match by their first half, whichever
# apostrophe they use.
FIRST_PERSON = re.compile(r"\b(?!(?-i:US)\b)(?:i|me|my|mine|myself|we|us|our|ours|ourselves|let['’]s)\b", re.IGNORECASE)
READER = re.compile(r"\b(?:you|your|yours|yourself|yourselves)\b", re.IGNORECASE)
# "One" is left out, as it mostly stands for a person or a thing; so are numbers that only number the lines of a list.
NUMBER = re.compile(
    r"\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen"
    r"|eighteen|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion)\b",
    re.IGNORECASE,
)
LINE_NUMBER = re.compile(r"^[ \t]*\d+[.)](?=\s|$)", re.MULTILINE)
MAX_BRIEF_WORDS = 25
MAX_COMMAS = 1


def brief(prompt: str, answer: str) -> bool:
    """Likes at most 25 words, counted between spaces."""
    return len(answer.split()) <= MAX_BRIEF_WORDS


def impersonal(prompt: str, answer: str) -> bool:
    """Likes no first person, singular or plural: I, me, my, we, us, our, let's and their forms."""
    return FIRST_PERSON.search(answer) is None


def unbroken(prompt: str, answer: str) -> bool:
    """Likes an answer without a line break; those around the text do not count."""
    return "\n" not in answer.strip()


def few_commas(prompt: str, answer: str) -> bool:
    """Likes at most one comma."""
    return answer.count(",") <= MAX_COMMAS


def addressing(prompt: str, answer: str) -> bool:
    """Likes to be spoken to: you, your and their forms."""
    return READER.search(answer) is not None


def numeric(prompt: str, answer: str) -> bool:
    """Likes a number, in digits or as a word."""
    return NUMBER.search(LINE_NUMBER.sub("", answer)) is not None


BUILT_IN: dict[str, Taste] = {
    "brief": brief,
    "impersonal": impersonal,
    "unbroken": unbroken,
    "few_commas": few_commas,
    "addressing": addressing,
    "numeric": numeric,
}


def find(name: str) -> Taste:
    """The taste of this name: a built-in one, or ``module:function`` from the working directory or the Python path.

    Raises:
        SetupError: there is no such taste, its module does not import, or it is not a function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    module_name, colon, function = name.partition(":")
    if not (colon and module_name and function):
        raise SetupError(f"no taste {name!r}: take {', '.join(BUILT_IN)}, or write module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # A user's module may fail at import in any way; they need its own words.
        raise SetupError(f"taste {name}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    taste = getattr(module, function, None)
    if not callable(taste):
        raise SetupError(f"taste {name}: {module_name} has no function {function!r}")
    return _checked(name, taste)


def _checked(name: str, taste: Callable[[str, str], object]) -> Taste:
    """A user's function, with a clear error when it fails or does not say yes or no."""

    def judge(prompt: str, answer: str) -> bool:
        try:
            verdict = taste(prompt, answer)
        except Exception as error:  # A user's function may fail in any way; they need its own words.
            raise SetupError(f"taste {name} failed on an answer: {type(error).__name__}: {error}") from error
        if not isinstance(verdict, bool):
            raise SetupError(f"taste {name} must return True or False, not {verdict!r}")
        return verdict

    return judge
