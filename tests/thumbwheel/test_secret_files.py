"""Who may read a secret's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from thumbwheel.errors import SetupError
from thumbwheel.secret_files import read_secret

NOBODY = 65534


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("tw_secret\n")
    return path


def own(path: Path, user: int, mode: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, user, user)
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_its_owner_alone(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert read_secret(str(file), "client.key_file") == "tw_secret"


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o622])
def test_nobody_else(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(SetupError, match=r"client\.key_file = .* can be read by others than its owner: chmod 600"):
        read_secret(str(file), "client.key_file")


@pytest.mark.parametrize("mode", [0o640, 0o440])
def test_the_group_only_of_roots_file(file: Path, mode: int) -> None:
    own(file, 0, mode)
    assert read_secret(str(file), "client.key_file") == "tw_secret"
    own(file, NOBODY, mode)
    with pytest.raises(SetupError, match="can be read by others"):
        read_secret(str(file), "client.key_file")
