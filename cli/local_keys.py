"""The keys that `thumbwheel up` makes for its own learner and for whoever may read its data directory."""

from __future__ import annotations

import contextlib
from pathlib import Path

from thumbwheel.config import Client, Config
from thumbwheel.credentials import Credentials, KeyChecker
from thumbwheel.errors import NotAuthenticated
from thumbwheel.secret_files import write_secret
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import SCOPE_LEARNER, Scope


def operator(data_dir: Path) -> Path:
    """File with the key of the commands that are called on this machine."""
    return data_dir / "secrets" / "operator.key"


def for_learner(settings: Config) -> Client:
    """[client] as the learner here needs it."""
    if settings.security.auth == "off" or settings.client.key_file:
        return settings.client
    return settings.client.model_copy(update={"key_file": str(_learner(settings.data_dir))})


async def ensure(settings: Config) -> None:
    """Makes the keys where they are missing, or no longer good; nothing where nobody asks for keys.

    Raises:
        SetupError: the store cannot be used, or the files cannot be written.
    """
    if settings.security.auth == "off":
        return
    store = await Store.open(settings.redis.url, settings.redis.namespace, settings.redis.password_file)
    try:
        everything = [scope for scope in Scope.values() if scope]
        await _ensure(store, operator(settings.data_dir), "operator", everything)
        await _ensure(store, _learner(settings.data_dir), "learner", [SCOPE_LEARNER])
    finally:
        await store.close()


async def _ensure(store: Store, path: Path, user: str, scopes: list[Scope.ValueType]) -> None:
    with contextlib.suppress(FileNotFoundError, NotAuthenticated):  # none yet; of another store, or revoked
        await KeyChecker(store).check(_read(path))
        return
    key, _ = await Credentials(store).make(user, scopes)
    write_secret(path, key)


def _learner(data_dir: Path) -> Path:
    return data_dir / "secrets" / "learner.key"


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
