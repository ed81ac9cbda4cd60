"""Who calls. A rater is kept only as an HMAC of the name it came with, so the store holds no names.

Without keys a caller names itself in the metadata ``x-thumbwheel-user``. That is good enough among people who share a
machine, and for nobody else: ``require_loopback`` keeps such a server off the network.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from thumbwheel.errors import InvalidInput, SetupError

USER_KEY = "x-thumbwheel-user"
DEFAULT_USER = "local"
MAX_USER_CHARS = 128


class Identity:
    """Turns call metadata into a rater id."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def rater(self, metadata: Iterable[tuple[str, str | bytes]]) -> str:
        """32 hex digits that stay the same for the same user and secret.

        Raises:
            InvalidInput: the name is empty, too long or not printable, or there are several.
        """
        names = [value for key, value in metadata if key == USER_KEY]
        name = names[0] if names else DEFAULT_USER
        if len(names) > 1:
            raise InvalidInput(USER_KEY, f"{len(names)} values; send one")
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_USER_CHARS:
            raise InvalidInput(USER_KEY, f"must be 1 to {MAX_USER_CHARS} printable characters")
        return hmac.digest(self._secret, b"rater\0" + name.encode(), "sha256").hex()[:32]


def rater_secret(folder: Path) -> bytes:
    """The secret of this installation, 32 bytes, made at the first call. Without it old votes belong to nobody.

    Raises:
        SetupError: it cannot be read or written, or is damaged.
    """
    path = folder / "rater.key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
        secret = path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot keep the raters' secret in {path}: {error.strerror}") from error
    if len(secret) != 32:
        raise SetupError(f"{path} should hold 32 bytes and holds {len(secret)}: bring the right one back from a backup")
    return secret


def _create(path: Path) -> None:
    """Writes aside and links, so that of two servers that start at once both read the same whole secret."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)
        except FileExistsError:
            return
    finally:
        draft.unlink()


def require_loopback(host: str) -> None:
    """
    Raises:
        SetupError: `host` can be reached from other machines (or is a name that could be).
    """
    bare = host.removeprefix("[").removesuffix("]")
    try:
        loopback = bare == "localhost" or ipaddress.ip_address(bare).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise SetupError(
            f"server.host = {host!r}: without keys and TLS anybody who reaches this address could read, rate"
            " and roll back, so only a loopback address (127.0.0.1, ::1, localhost) is accepted"
        )
