"""Raters' names, and the secret that hides them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.identity import Identity, rater_secret
from thumbwheel.errors import SetupError


def test_the_same_user_is_the_same_rater_and_another_is_not() -> None:
    identity = Identity(b"k" * 32)
    ada = identity.rater("ada")
    assert ada == identity.rater("ada")
    assert ada != identity.rater("bob")
    assert ada != Identity(b"j" * 32).rater("ada")
    assert "ada" not in ada
    assert len(ada) == 32


async def test_the_secret_is_made_once_even_by_many_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    secrets = await asyncio.gather(*(asyncio.to_thread(rater_secret, folder) for _ in range(16)))
    assert len(set(secrets)) == 1
    assert rater_secret(folder) == secrets[0]
    assert len(secrets[0]) == 32
    assert [path.name for path in folder.iterdir()] == ["rater.key"]
    assert (folder / "rater.key").stat().st_mode & 0o077 == 0


def test_a_damaged_secret_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "rater.key").write_bytes(b"short")
    with pytest.raises(SetupError, match="backup"):
        rater_secret(tmp_path)
    assert (tmp_path / "rater.key").read_bytes() == b"short"


def test_a_folder_that_cannot_be_made_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match=r"rater\.key"):
        rater_secret(tmp_path / "file" / "secrets")
