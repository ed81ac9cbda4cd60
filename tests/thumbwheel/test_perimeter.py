"""What may be reached from the network, and what must protect it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from thumbwheel.config import Security
from thumbwheel.errors import SetupError
from thumbwheel.perimeter import CertificateFiles, is_loopback, require_closed


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    require_closed(host, Security(), "server.host")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org", ""])
def test_the_network_needs_tls_and_keys(host: str) -> None:
    for security in (Security(), Security(auth="keys"), Security(tls_certificate="c", tls_key="k")):
        with pytest.raises(SetupError, match=r"server\.host.*without keys and TLS"):
            require_closed(host, security, "server.host")
    require_closed(host, Security(auth="keys", tls_certificate="c", tls_key="k"), "server.host")


def test_no_certificate_is_no_tls() -> None:
    assert CertificateFiles.of(Security()) is None


def test_files_that_are_missing_empty_or_no_pair_are_said(tmp_path: Path, certificates: Any) -> None:
    one, other = certificates("one"), certificates("other")
    empty = tmp_path / "empty"
    empty.write_text("")
    for certificate, key, said in [
        ("nowhere.pem", one.key, "nowhere.pem.*No such file"),
        (one.chain, str(empty), "tls_key.*empty"),
        (one.chain, other.key, "a pair"),
        (one.key, one.key, "PEM"),
    ]:
        with pytest.raises(SetupError, match=said):
            CertificateFiles(Security(tls_certificate=certificate, tls_key=key))


def test_a_change_is_seen_once_and_only_when_it_is_whole(certificates: Any) -> None:
    one, other = certificates("one"), certificates("other")
    files = CertificateFiles(Security(tls_certificate=one.chain, tls_key=one.key))
    assert not files.changed()
    Path(one.chain).write_bytes(Path(other.chain).read_bytes())
    os.utime(one.chain, ns=(1, 1))
    assert not files.changed(), "the key is still the old one's"
    Path(one.key).write_bytes(Path(other.key).read_bytes())
    os.utime(one.key, ns=(2, 2))
    assert files.changed()
    assert not files.changed()
    assert files.pem()[1] == Path(other.chain).read_bytes()
