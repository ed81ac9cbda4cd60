"""Bearer keys: who may call, and what they may do.

    tw_<key id, 12 hex digits>_<secret, 43 characters>

The store keeps a hash of the secret; it has 256 random bits, so a plain hash is as good as a slow one.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from thumbwheel import config
from thumbwheel.errors import CorruptRecord, InvalidInput, NotAuthenticated, NotFound, StoreUnavailable
from thumbwheel.records import now, seal, unseal
from thumbwheel.store import Store, Value
from thumbwheel_client.v1.record_pb2 import SCOPE_METRICS, KeyRecord, Limits, Scope

CACHE_SECONDS: Final = 2.0
"""How long a revoked key may still work."""
MAX_NAME_CHARS: Final = 128
_KEY: Final = re.compile(r"tw_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_REFUSED: Final = "this key is not valid: it may be mistyped, revoked or expired (`thumbwheel keys list` shows)"


class Credentials:
    """The keys of one namespace, for those who make them."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def make(
        self,
        user: str,
        scopes: Iterable[Scope.ValueType],
        *,
        tenant: str = "",
        days: float | None = None,
        limits: Limits | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key and its record. The key cannot be had again.

        Args:
            tenant: "" is the user's own.
            days: how long it is valid; None: for ever.

        Raises:
            InvalidInput: a name that is none, or no scope.
        """
        allowed = sorted(set(scopes))
        if not allowed:
            raise InvalidInput("scopes", "none: a key without a scope allows nothing")
        _check_name("user", user)
        _check_name("tenant", tenant or user)
        secret = secrets.token_urlsafe(32)
        record = KeyRecord(
            key_id=secrets.token_hex(6),
            user=user,
            tenant=tenant or user,
            scopes=allowed,
            secret_sha256=_hash(secret),
            limits=limits,
            created_at=now(),
        )
        if days is not None:
            record.expires_at.FromMilliseconds(record.created_at.ToMilliseconds() + int(days * 86_400_000))
        await self._write(b"", record)
        return f"tw_{record.key_id}_{secret}", record

    async def all(self) -> list[KeyRecord]:
        """All keys, oldest first, those that are not valid any more included."""
        reply = await self._store.call("HVALS", self._store.keys.credentials)
        return sorted((unseal(KeyRecord, data) for data in reply), key=lambda key: key.created_at.ToMilliseconds())

    async def revoke(self, key_id: str) -> KeyRecord:
        """Ends a key on every server within CACHE_SECONDS. Revoked already is a success.

        Raises:
            NotFound: no such key.
        """
        old = await self._store.call("HGET", self._store.keys.credentials, key_id)
        if old is None:
            raise NotFound(f"no key {key_id!r}")
        record = unseal(KeyRecord, old)
        if not record.HasField("revoked_at"):
            record.revoked_at.CopyFrom(now())
            await self._write(old, record)
        return record

    async def _write(self, old: bytes, record: KeyRecord) -> None:
        args: list[Value] = [record.key_id, old, seal(record)]
        if not await self._store.script("write_credential", [self._store.keys.credentials], args, durable=True):
            raise StoreUnavailable("somebody else changed this key; try again")


@dataclass(frozen=True, slots=True)
class _Seen:
    record: KeyRecord
    at: float


class KeyChecker:
    """Tells whose key it is that somebody calls with.

    It remembers what it has seen for CACHE_SECONDS, and for as long as the store is away: chat goes on without it.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, _Seen] = {}

    async def check(self, key: str) -> KeyRecord:
        """
        Raises:
            NotAuthenticated: not a key, not this store's, revoked or expired.
            StoreUnavailable: the store is away, and the key has not been seen before.
        """
        found = _KEY.fullmatch(key)
        if found is None:
            raise NotAuthenticated("this is not a key; one looks like tw_<12 hex digits>_<43 characters>")
        record = await self._find(found[1])
        # Equal for an unknown and a wrong key: what is wrong is nobody's business but the owner's.
        if record is None or not hmac.compare_digest(record.secret_sha256, _hash(found[2])) or not is_valid(record):
            raise NotAuthenticated(_REFUSED)
        return record

    async def allows(self, authorization: str, scope: Scope.ValueType) -> bool:
        """Whether the key in an ``authorization`` header has the scope.

        Raises:
            StoreUnavailable: as `check`.
        """
        try:
            return scope in (await self.check(bearer(authorization))).scopes
        except NotAuthenticated:
            return False

    async def _find(self, key_id: str) -> KeyRecord | None:
        seen = self._seen.get(key_id)
        if seen is not None and time.monotonic() - seen.at < CACHE_SECONDS:
            return seen.record
        try:
            data = await self._store.call("HGET", self._store.keys.credentials, key_id)
            record = None if data is None else unseal(KeyRecord, data)
        except StoreUnavailable:
            if seen is None:
                raise
            return seen.record
        except CorruptRecord:
            record = None
        if record is None:
            self._seen.pop(key_id, None)
        else:
            self._seen[key_id] = _Seen(record, time.monotonic())
        return record


def is_valid(record: KeyRecord) -> bool:
    """Neither revoked nor expired."""
    expired = record.HasField("expires_at") and record.expires_at.ToMilliseconds() <= time.time() * 1000
    return not expired and not record.HasField("revoked_at")


def bearer(authorization: str) -> str:
    """The key or token of an ``authorization`` header.

    Raises:
        NotAuthenticated: it is empty or of another kind.
    """
    kind, _, token = authorization.partition(" ")
    if kind.lower() != "bearer" or not token.strip():
        raise NotAuthenticated("send a key or token as metadata: authorization: Bearer <key>")
    return token.strip()


def scrapers(store: Store, security: config.Security) -> Callable[[str], Awaitable[bool]] | None:
    """Says of an ``authorization`` header whether it may see the metrics; None: everybody may."""
    if security.auth == "off":
        return None
    return functools.partial(KeyChecker(store).allows, scope=SCOPE_METRICS)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _check_name(field: str, name: str) -> None:
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARS:
        raise InvalidInput(field, f"must be 1 to {MAX_NAME_CHARS} printable characters")
