"""The check of the protos, on a copy that is changed as somebody would change it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAT = "protos/thumbwheel/v1/chat.proto"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for part in ("protos", "client"):
        shutil.copytree(ROOT / part, tmp_path / part)
    return tmp_path


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [folder / "protos" / script], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )


def append(file: Path, text: str) -> None:
    file.write_text(file.read_text() + text)


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_what_is_committed_passes(copy: Path) -> None:
    result = run(copy, "check.sh")
    assert result.returncode == 0, result.stdout + result.stderr


def test_changed_stub_is_found(copy: Path) -> None:
    append(copy / "client/thumbwheel_client/v1/chat_pb2_grpc.py", "# by hand\n")
    result = run(copy, "check.sh")
    assert result.returncode != 0
    assert "make protos" in result.stderr


def test_addition_needs_new_stubs_and_then_passes(copy: Path) -> None:
    append(copy / CHAT, "\n// A thing.\nmessage Thing {}\n")
    assert "make protos" in run(copy, "check.sh").stderr
    released = run(copy, "release.sh")
    assert released.returncode == 0, released.stdout
    assert run(copy, "check.sh").returncode == 0


@pytest.mark.parametrize("script", ["check.sh", "release.sh"])
def test_break_of_what_was_promised_is_refused(copy: Path, script: str) -> None:
    change(copy / CHAT, "message Usage {", "message Consumption {")
    change(copy / CHAT, " Usage usage", " Consumption usage")
    result = run(copy, script)
    assert result.returncode != 0
    assert 'Previously present message "Usage" was deleted' in result.stdout


def test_style_is_held(copy: Path) -> None:
    append(copy / CHAT, "\nmessage bad_name {}\n")
    assert "PascalCase" in run(copy, "check.sh").stdout


def test_the_client_asks_for_runtimes_that_its_stubs_accept() -> None:
    """Both runtimes refuse stubs that are newer than themselves, when they are imported."""
    stubs = (ROOT / "client" / "thumbwheel_client" / "v1" / "chat_pb2.py").read_text(encoding="utf-8")
    services = (ROOT / "client" / "thumbwheel_client" / "v1" / "chat_pb2_grpc.py").read_text(encoding="utf-8")
    written = {
        "protobuf": re.search(r"Protobuf Python Version: ([\d.]+)", stubs),
        "grpcio": re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", services),
    }
    for project in ("pyproject.toml", "client/pyproject.toml"):
        wanted = tomllib.loads((ROOT / project).read_text(encoding="utf-8"))["project"]["dependencies"]
        for package, version in written.items():
            assert version is not None
            [least] = [bound for need in wanted for bound in re.findall(rf"^{package}>=([\d.]+)", need)]
            assert tuple(map(int, least.split("."))) >= tuple(map(int, version[1].split("."))), (project, package)
