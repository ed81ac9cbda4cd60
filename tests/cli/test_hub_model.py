"""Hugging Face's own client against a hub of ours: the real one cannot be asked in a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.test_checkpoint import checkpoint
from tests.hub import COMMITS, Hub, hub

PREPARE = """
import sys
from pathlib import Path
from rich.console import Console
from cli import base_model
from thumbwheel.config import Config, Model
from thumbwheel.errors import SetupError

settings = Config(data_dir=Path(sys.argv[1]), model=Model(path=sys.argv[2]))
try:
    base_model.check(settings)
    print("checked", flush=True)
    print(base_model.ensure(settings, Console(stderr=True)).model.path)
    assert base_model.is_prepared(settings)
except SetupError as error:
    print(error)
"""


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Hub]:
    with hub({"ours/small": checkpoint(tmp_path / "published", vocab_size=10)}) as server:
        yield server


def prepare(tmp_path: Path, hub: Hub, path: str = "ours/small") -> list[str]:
    """Lines that the program above says, in a process of its own: the client reads its environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", PREPARE, str(tmp_path / "data"), path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_it_is_fetched_once_and_stays_the_same(tmp_path: Path, ours: Hub) -> None:
    (ours.models["ours/small"] / "pytorch_model.bin").write_bytes(b"not asked for")
    link = tmp_path / "data" / "models" / "ours" / "small"
    assert prepare(tmp_path, ours) == ["checked", str(link)]
    assert not [path for path in ours.requests if path.endswith(".bin")]
    assert (link / "model.safetensors").read_bytes() == (ours.models["ours/small"] / "model.safetensors").read_bytes()

    ours.requests.clear()
    ours.revision = 1
    assert prepare(tmp_path, ours) == ["checked", str(link)]
    assert not ours.requests, "what is there needs no hub, and nothing newer"


def test_a_lost_cache_is_filled_with_the_same_revision(tmp_path: Path, ours: Hub) -> None:
    prepare(tmp_path, ours)
    link = tmp_path / "data" / "models" / "ours" / "small"
    (tmp_path / "hub").rename(tmp_path / "gone")
    ours.revision = 1
    assert prepare(tmp_path, ours) == ["checked", str(link)]
    assert link.readlink().name == COMMITS[0]
    assert (link / "model.safetensors").is_file()


def test_without_the_hub_what_lies_in_the_cache_will_do(tmp_path: Path, ours: Hub) -> None:
    prepare(tmp_path, ours)
    (tmp_path / "data").rename(tmp_path / "other data")
    ours.shutdown()
    ours.server_close()
    assert prepare(tmp_path, ours) == ["checked", str(tmp_path / "data" / "models" / "ours" / "small")]


def test_without_hub_and_cache_it_says_so(tmp_path: Path, ours: Hub) -> None:
    ours.shutdown()
    ours.server_close()
    assert prepare(tmp_path, ours)[0].startswith("model.path = ours/small: it cannot be fetched: ")


def test_what_does_not_fit_is_refused_before_its_weights_are_fetched(tmp_path: Path, ours: Hub) -> None:
    (ours.models["ours/small"] / "config.json").write_text('{"is_encoder_decoder": true}')
    assert prepare(tmp_path, ours)[0] == "model.path = ours/small: it is an encoder and a decoder"
    assert not [path for path in ours.requests if path.endswith(".safetensors")]


def test_what_only_the_weights_tell_is_refused_when_they_are_there(tmp_path: Path, ours: Hub) -> None:
    checkpoint(ours.models["ours/small"], ["transformer.h.0.attn.c_attn.weight"])
    said = prepare(tmp_path, ours)
    assert said[0] == "checked"
    assert said[1].startswith("model.path = ours/small: its layers have no self_attn.q_proj")


def test_a_transfer_that_is_cut_leaves_no_half_model(tmp_path: Path, ours: Hub) -> None:
    ours.cut = True
    said = prepare(tmp_path, ours)
    assert said[1].startswith("model.path = ours/small: it cannot be fetched: ")
    assert not (tmp_path / "data" / "models" / "ours" / "small").exists()
    ours.cut = False
    assert prepare(tmp_path, ours)[1].endswith("ours/small")


def test_who_may_not_have_it_is_told_what_to_do(tmp_path: Path, ours: Hub) -> None:
    ours.gated.add("ours/small")
    assert prepare(tmp_path, ours) == [
        "model.path = ours/small: its owner wants to be asked",
        "  accept the terms on its page, and set HF_TOKEN",
    ]
    assert prepare(tmp_path, ours, "ours/other")[0] == (
        "model.path = ours/other: there is no such folder, and the hub has no such model, or not for you"
    )
