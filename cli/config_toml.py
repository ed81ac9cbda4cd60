"""Writes a configuration as TOML, each key with its documentation: what --dry-run prints.

``python -m cli.config_toml`` writes the defaults: thumbwheel.toml.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from cli.config_keys import keys
from thumbwheel.config import Config

HEADER = """\
# thumbwheel's configuration: every key. Unknown keys are errors.
# Stronger than this file: the environment (THUMBWHEEL_SERVER__GRPC_PORT=50061), then --set server.grpc_port=50061.
"""


def write(settings: Config) -> str:
    """The whole tree; `thumbwheel.config.load` reads it back as it was."""
    return HEADER + "\n".join(_lines(settings)) + "\n"


def _lines(settings: Config) -> Iterator[str]:
    for key in keys(settings):
        yield ""
        yield from _comment(key.field.description)
        if isinstance(key.value, BaseModel):
            yield f"[{'.'.join(key.path)}]"
        else:
            yield f"{key.path[-1]} = {toml_value(key.value)}"


def _comment(text: str | None) -> Iterator[str]:
    for line in textwrap.wrap(" ".join((text or "").split()), 117, break_long_words=False):
        yield f"# {line}"


def toml_value(value: object) -> str:
    """As TOML writes it."""
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
