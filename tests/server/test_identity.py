"""Who calls, and that an unprotected server stays on its machine."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from server.identity import Identity, rater_secret, require_loopback
from thumbwheel.errors import InvalidInput, SetupError


def test_the_same_user_is_the_same_rater_and_another_is_not() -> None:
    identity = Identity(b"k" * 32)
    ada = identity.rater([("x-thumbwheel-user", "ada")])
    assert ada == identity.rater([("user-agent", "grpc"), ("x-thumbwheel-user", "ada")])
    assert ada != identity.rater([("x-thumbwheel-user", "bob")])
    assert identity.rater([]) == identity.rater([("x-thumbwheel-user", "local")])
    assert ada != Identity(b"j" * 32).rater([("x-thumbwheel-user", "ada")])
    assert "ada" not in ada
    assert len(ada) == 32


@pytest.mark.parametrize(
    "values", [[""], ["a" * 129], ["a\nb"], [b"ada"], ["ada", "bob"]], ids=["empty", "long", "control", "bytes", "two"]
)
def test_names_that_are_none_are_refused(values: list[str | bytes]) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Identity(b"k" * 32).rater([("x-thumbwheel-user", value) for value in values])
    assert refusal.value.field == "x-thumbwheel-user"


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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_is_accepted(host: str) -> None:
    require_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_the_network_is_refused_with_the_reason(host: str) -> None:
    with pytest.raises(SetupError, match="without keys and TLS"):
        require_loopback(host)
