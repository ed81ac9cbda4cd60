"""Secrets come from files, never from arguments: those are seen by everybody on the machine."""

from __future__ import annotations

import os
from pathlib import Path

from thumbwheel.config import Client
from thumbwheel.errors import SetupError


def read_file(path: str, key: str) -> bytes:
    """What a configured file holds.

    Args:
        key: the configuration's key that names it, for the error.

    Raises:
        SetupError: it cannot be read, or is empty.
    """
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise SetupError(f"{key} = {path!r} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise SetupError(f"{key} = {path!r} is empty")
    return data


def read_secret(path: str, key: str) -> str:
    """The secret in a file, without the line's end.

    A file of root's may be read by its group: so a pod mounts secrets, for the group that it runs in.

    Raises:
        SetupError: as `read_file`; or others can read it.
    """
    data = read_file(path, key)
    found = Path(path).expanduser().stat()
    if found.st_mode & (0o027 if found.st_uid == 0 else 0o077):
        raise SetupError(f"{key} = {path!r} can be read by others than its owner: chmod 600 {path}")
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise SetupError(f"{key} = {path!r} is no text") from None


def write_secret(path: Path, secret: str) -> None:
    """Puts a secret into a file that only its owner can read; whole or not at all.

    Raises:
        SetupError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(f"{secret}\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from error


def client_pem(client: Client) -> tuple[bytes | None, bytes | None, bytes | None]:
    """CA, private key and certificate chain with which to call a server; the CA is None for the machine's own.

    Raises:
        SetupError: one of the files cannot be read.
    """
    ca = None if client.ca == "system" else read_file(client.ca, "client.ca")
    if not client.certificate:
        return ca, None, None
    key = read_file(client.private_key, "client.private_key")
    return ca, key, read_file(client.certificate, "client.certificate")
