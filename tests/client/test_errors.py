"""The tree of errors is the one that is drawn."""

from __future__ import annotations

import re

import pytest

from thumbwheel_client import errors
from thumbwheel_client.errors import InvalidInput, Retryable, ThumbwheelError, naming


def test_the_tree_is_as_drawn() -> None:
    assert errors.__doc__ is not None
    parents: list[str] = []
    drawn = {}
    for indent, name in re.findall(r"^([│├└─ ]*)([A-Z]\w+) {2,}\S", errors.__doc__, flags=re.MULTILINE):
        depth = len(indent) // 4
        parents[depth:] = [name]
        drawn[name] = parents[depth - 1] if depth else "Exception"
    found = {name: kind.__base__.__name__ for name, kind in vars(errors).items() if isinstance(kind, type)}
    found = {name: base for name, base in found.items() if issubclass(vars(errors)[name], ThumbwheelError)}
    assert drawn == found
    assert len(drawn) > 10


def test_what_no_request_can_hold_is_invalid_input() -> None:
    with pytest.raises(InvalidInput, match="input: out of") as refused, naming("input"):
        raise ValueError("out of range")
    assert refused.value.field == "input"
    with pytest.raises(TypeError), naming("input"):
        raise TypeError


def test_without_the_servers_word_one_comes_again_in_a_second() -> None:
    assert Retryable("not now").retry_after == 1.0
