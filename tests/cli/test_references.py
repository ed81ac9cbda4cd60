"""The generated references are those of the sources as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli import config_reference
from cli.config_keys import keys
from thumbwheel.config import Config

ROOT = Path(__file__).parents[2]


def test_configuration_is_the_tree() -> None:
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert text == config_reference.write(Config()), "run `make docs`"


def test_every_key_is_in_the_reference() -> None:
    text = config_reference.write(Config())
    for key in keys(Config()):
        name = ".".join(key.path)
        assert f"| `{name}` |" in text or f"\n## {name}\n" in text


@pytest.mark.parametrize(
    "row",
    [
        "| `server.grpc_port` | whole number, at least 0, at most 65535 | `50051` | Port of chat and feedback;",
        '| `server.weights` | `"adapters"` or `"merged"` | `"adapters"` |',
        "| `learner.gate.min_win_rate` | number, at least 0, at most 1 | `0.5` |",
        "| `server.reflection` | true or false | `true` |",
    ],
)
def test_row_says_what_a_key_takes(row: str) -> None:
    assert f"\n{row}" in config_reference.write(Config())


def test_api_is_that_of_the_protos() -> None:
    made = subprocess.run([sys.executable, ROOT / "protos/reference.py"], capture_output=True, text=True, check=True)
    assert (ROOT / "docs/api.md").read_text(encoding="utf-8") == made.stdout, "run `make docs`"
    row = "| `Rollout` | [RolloutRequest](#rolloutrequest) | stream of [RolloutResponse](#rolloutresponse) |"
    assert row in made.stdout
