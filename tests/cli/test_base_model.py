from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cli import base_model, embedded_model
from tests.cli.test_checkpoint import checkpoint
from thumbwheel.config import Config, Model, Server
from thumbwheel.errors import SetupError


def settings(data_dir: Path, path: str | Path) -> Config:
    return Config(data_dir=data_dir, model=Model(path=str(path)))


def test_local_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    config = settings(tmp_path / "data", "./model")
    base_model.check(config)
    assert base_model.ensure(config, Console()).model.path == str(folder), "a child may have another working directory"
    assert base_model.is_prepared(config)


def test_tiny_model_passes(tiny_model: Path, tmp_path: Path) -> None:
    base_model.check(settings(tmp_path, tiny_model))


def test_template_may_be_in_the_tokenizers_configuration(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    base_model.check(settings(tmp_path, folder))


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "only safetensors"),
        ("tokenizer.json", "its tokenizer"),
        ("chat_template.jinja", "no chat template"),
    ],
)
def test_what_a_folder_lacks_is_named(tmp_path: Path, lacking: str, message: str) -> None:
    folder = checkpoint(tmp_path / "model")
    (folder / lacking).unlink()
    with pytest.raises(SetupError, match=message):
        base_model.check(settings(tmp_path, folder))


@pytest.mark.parametrize("path", ["./absent", "/absent/model", "absent"])
def test_folder_that_is_not_there(tmp_path: Path, path: str) -> None:
    with pytest.raises(SetupError, match="no such folder"):
        base_model.check(settings(tmp_path, path))


def test_a_quantised_model_and_the_one_it_was_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = checkpoint(tmp_path / "small", quantization_config={"quant_method": "compressed-tensors"})
    full = checkpoint(tmp_path / "full")
    monkeypatch.chdir(tmp_path)
    config = Config(data_dir=tmp_path / "data", model=Model(path="small", full_precision="full"))
    base_model.check(config)
    ready = base_model.ensure(config, Console()).model
    assert (ready.path, ready.full_precision, ready.adapted) == (str(served), str(full), full)
    with pytest.raises(SetupError, match=r"quantised, and server\.weights"):
        base_model.check(config.model_copy(update={"server": Server(weights="merged")}))
    with pytest.raises(SetupError, match=r"model\.full_precision = absent: there is no such folder"):
        base_model.check(Config(model=Model(path="small", full_precision="absent")))


def test_failed_preparation_says_why_and_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"not a model")
    monkeypatch.setattr(embedded_model, "source", lambda: tmp_path / "broken.gguf")
    config = settings(tmp_path / "data", "embedded")
    with pytest.raises(SetupError, match="preparing the embedded model failed") as error:
        base_model.ensure(config, Console(quiet=True))
    assert "Error" in str(error.value), "the converter's own words"
    assert not base_model.is_prepared(config)


PREPARE = """
import sys
from pathlib import Path
from rich.console import Console
from cli import base_model, embedded_model
from thumbwheel.config import Config
print(base_model.ensure(Config(data_dir=Path(sys.argv[1])), Console(stderr=True)).model.path)
"""


def prepare(data_dir: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PREPARE, str(data_dir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_embedded_model_is_prepared_once_by_two_at_once_after_one_was_killed(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with prepare(tmp_path) as killed:
        deadline = time.monotonic() + 240
        while not list(models.glob(".*.partial/*")):  # it writes: the worst moment
            assert time.monotonic() < deadline
            with pytest.raises(subprocess.TimeoutExpired):
                killed.wait(0.1)
        killed.send_signal(signal.SIGKILL)
    assert not base_model.is_prepared(Config(data_dir=tmp_path))

    with prepare(tmp_path) as first, prepare(tmp_path) as second:
        answers = [first.communicate(), second.communicate()]
    folder = models / embedded_model.NAME
    assert [out.strip() for out, _ in answers] == [str(folder)] * 2
    assert sum("waiting for it" in err for _, err in answers) == 1
    base_model.check(settings(tmp_path, folder))
    assert sorted(file.name for file in models.iterdir()) == [".lock", embedded_model.NAME]
    inode = folder.stat().st_ino
    with prepare(tmp_path) as again:
        assert again.communicate()[0].strip() == str(folder)
    assert folder.stat().st_ino == inode, "nothing was done again"
