"""Raters' names. A rater is kept only as an HMAC of the name it came with, so the store holds no names."""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from thumbwheel.errors import SetupError

MAX_USER_CHARS = 128


class Identity:
    """Turns names into rater ids."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def rater(self, user: str, issuer: str = "") -> str:
        """32 hex digits that stay the same for the same user and secret.

        Args:
            issuer: of the user's tokens; the same name of two issuers is two people. "": the user of a key.
        """
        name = f"{issuer}\0{user}" if issuer else user
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
