"""Everyday prompts for simulated raters, and others that nobody rates.

The two lists share no prompt: what is held out measures a version on prompts that no vote has ever touched.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def rated() -> tuple[str, ...]:
    """Prompts that raters ask."""
    return _lines("prompts_rated.txt")


@cache
def held_out() -> tuple[str, ...]:
    """Prompts for measuring only; their answers are never rated."""
    return _lines("prompts_held_out.txt")


def _lines(name: str) -> tuple[str, ...]:
    return tuple(files("cli").joinpath(name).read_text(encoding="utf-8").splitlines())
