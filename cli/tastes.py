"""Tastes: what a simulated rater likes.

A taste is a function of a prompt and an answer. Three are built in; any other is named ``module:function``.
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
MAX_BRIEF_WORDS = 25


def brief(prompt: str, answer: str) -> bool:
    """Likes at most 25 words, counted between spaces."""
    return len(answer.split()) <= MAX_BRIEF_WORDS


def impersonal(prompt: str, answer: str) -> bool:
    """Likes no first person, singular or plural: I, me, my, we, us, our, let's and their forms."""
    return FIRST_PERSON.search(answer) is None


def unbroken(prompt: str, answer: str) -> bool:
    """Likes an answer without a line break; those around the text do not count."""
    return "\n" not in answer.strip()


BUILT_IN: dict[str, Taste] = {"brief": brief, "impersonal": impersonal, "unbroken": unbroken}


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
