"""Writes a configuration as TOML, each key with its documentation: what --dry-run prints.

``python -m cli.config_toml`` writes the defaults: thumbwheel.toml.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from thumbwheel.config import Config

HEADER = """\
# thumbwheel's configuration: every key. Unknown keys are errors.
# Stronger than this file: the environment (THUMBWHEEL_SERVER__GRPC_PORT=50061), then --set server.grpc_port=50061.
"""


def write(settings: Config) -> str:
    """The whole tree; `thumbwheel.config.load` reads it back as it was."""
    return HEADER + "\n".join(_table(settings, ())) + "\n"


def _table(section: BaseModel, path: tuple[str, ...]) -> Iterator[str]:
    """Plain keys first: in TOML whatever follows a table's heading belongs to it."""
    tables = []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            tables.append((name, field.description, value))
        else:
            yield ""
            yield from _comment(field.description)
            yield f"{name} = {_value(value)}"
    for name, description, value in tables:
        yield ""
        yield from _comment(description)
        yield f"[{'.'.join((*path, name))}]"
        yield from _table(value, (*path, name))


def _comment(text: str | None) -> Iterator[str]:
    for line in textwrap.wrap(" ".join((text or "").split()), 117, break_long_words=False):
        yield f"# {line}"


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return json.dumps(str(value), ensure_ascii=False)  # TOML's basic strings are JSON's
    raise TypeError(f"no TOML for {value!r}")


if __name__ == "__main__":
    print(write(Config()), end="")
