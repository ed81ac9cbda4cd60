"""Writes docs/configuration.md from the configuration's types: ``python -m cli.config_reference``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cli.config_keys import Key, keys
from cli.config_toml import toml_value
from thumbwheel.config import Config

HEADER = """\
# Configuration

Written from `thumbwheel/config.py` by `make docs`. Each key may stand in a TOML file
([thumbwheel.toml](../thumbwheel.toml) has all of them), in the environment (`THUMBWHEEL_SERVER__GRPC_PORT=50061`) or
behind `--set server.grpc_port=50061`; the later is the stronger. Unknown keys are errors. [models.md](models.md) says
which models fit.
"""

COLUMNS = "\n| key | takes | default | what it is |\n|---|---|---|---|"

BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def write(settings: Config) -> str:
    """The reference with the given values as defaults."""
    return HEADER + "\n".join(_lines(settings)) + "\n"


def _lines(settings: Config) -> Iterator[str]:
    yield COLUMNS
    for key in keys(settings):
        if isinstance(key.value, BaseModel):
            yield f"\n## {'.'.join(key.path)}"
            if text := _text(key.field):
                yield f"\n{text}"
            if any(not isinstance(value, BaseModel) for _, value in key.value):
                yield COLUMNS
        else:
            yield _row(key)


def _row(key: Key) -> str:
    cells = (f"`{'.'.join(key.path)}`", _takes(key.field), f"`{toml_value(key.value)}`", _text(key.field))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _takes(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) is Literal:
        return " or ".join(f"`{toml_value(choice)}`" for choice in get_args(kind))
    names = {bool: "true or false", int: "whole number", float: "number"}
    bounds = [
        f"{words} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, words in BOUNDS.items()
        if hasattr(bound, name)
    ]
    return ", ".join([names.get(kind, "text") if isinstance(kind, type) else "text", *bounds])


def _text(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


if __name__ == "__main__":
    print(write(Config()), end="")
