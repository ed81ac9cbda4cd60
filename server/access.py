"""Who calls and what they may do: found out once per call, from the credential alone, and denied by default.

call ─► identify (key, token, or on one's own machine a name) ─► scope of the method ─► handler: `caller()`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from server import metrics
from server.identity import MAX_USER_CHARS, Identity
from server.tokens import Tokens
from thumbwheel import config
from thumbwheel.credentials import KeyChecker, bearer
from thumbwheel.errors import InvalidInput, NotAllowed, NotAuthenticated
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import (
    SCOPE_ADMIN,
    SCOPE_CHAT,
    SCOPE_ERASE,
    SCOPE_LEARNER,
    SCOPE_RATE,
    KeyRecord,
    Limits,
    Scope,
)

USER_KEY = "x-thumbwheel-user"
DEFAULT_USER = "local"

SCOPES: Mapping[str, Scope.ValueType] = {
    "/thumbwheel.v1.ChatService/Chat": SCOPE_CHAT,
    "/thumbwheel.v1.ChatService/StreamChat": SCOPE_CHAT,
    "/thumbwheel.v1.FeedbackService/Rate": SCOPE_RATE,
    "/thumbwheel.v1.FeedbackService/Retract": SCOPE_RATE,
    "/thumbwheel.v1.FeedbackService/ListVotes": SCOPE_RATE,  # everybody's: the handler asks for more
    "/thumbwheel.v1.ModelService/ListVersions": SCOPE_ADMIN,
    "/thumbwheel.v1.ModelService/GetVersion": SCOPE_ADMIN,
    "/thumbwheel.v1.ModelService/Promote": SCOPE_ADMIN,
    "/thumbwheel.v1.ModelService/Rollback": SCOPE_ADMIN,
    "/thumbwheel.v1.ModelService/WatchVersions": SCOPE_ADMIN,
    "/thumbwheel.v1.RolloutService/Rollout": SCOPE_LEARNER,
    "/thumbwheel.v1.PrivacyService/Erase": SCOPE_ERASE,
    "/thumbwheel.v1.ImportService/ImportVotes": SCOPE_ADMIN,
}

EVERYTHING = frozenset(value for value in Scope.values() if value)

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls.

    Attributes:
        rater: HMAC of the name; what the store knows of the person.
        tenant: whose prompts may share a prefix cache with this caller's.
        budget: names what `limits` count; empty: nothing is counted.
    """

    rater: str
    tenant: str
    scopes: frozenset[Scope.ValueType]
    budget: str
    limits: Limits

    def require(self, scope: Scope.ValueType) -> None:
        """
        Raises:
            NotAllowed: the key has another scope.
        """
        if scope not in self.scopes:
            raise NotAllowed(f"this call needs the scope {scope_name(scope)!r}, which the key does not have")


_caller: ContextVar[Caller] = ContextVar("caller")


def caller() -> Caller:
    """Who made the call that runs in this task."""
    return _caller.get()


def scope_name(scope: Scope.ValueType) -> str:
    """`SCOPE_CHAT` as "chat"."""
    return Scope.Name(scope).removeprefix("SCOPE_").lower()


def scopes_named(names: Iterable[str]) -> frozenset[Scope.ValueType]:
    """Scopes by name; names of none are left out."""
    known = {scope_name(value): value for value in Scope.values() if value}
    return frozenset(known[name] for name in names if name in known)


class Access(Protocol):
    """Tells who calls."""

    async def identify(self, metadata: Metadata) -> Caller:
        """
        Raises:
            NotAuthenticated: no credential, or one that is not valid.
            InvalidInput: a name that is none.
            StoreUnavailable: a key cannot be looked up.
        """


async def admit(access: Access, method: str, scope: Scope.ValueType | None, metadata: Metadata) -> None:
    """Lets the running task call `method`; `caller` tells on whose behalf.

    Args:
        scope: what opens it; None: nothing does.

    Raises:
        NotAllowed: not this caller, or nobody at all.
        NotAuthenticated, InvalidInput, StoreUnavailable: as `Access.identify`.
    """
    try:
        known = await access.identify(metadata)
        if scope is None:
            raise NotAllowed(f"nobody may call {method}")
        known.require(scope)
    except (NotAuthenticated, NotAllowed) as error:
        metrics.REFUSED_CALLERS.labels("credential" if isinstance(error, NotAuthenticated) else "scope").inc()
        raise
    _caller.set(known)


class OpenAccess:
    """For one's own machine: callers name themselves, and may do everything."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def identify(self, metadata: Metadata) -> Caller:
        names = [value for key, value in metadata if key == USER_KEY]
        name = names[0] if names else DEFAULT_USER
        if len(names) > 1:
            raise InvalidInput(USER_KEY, f"{len(names)} values; send one")
        if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= MAX_USER_CHARS:
            raise InvalidInput(USER_KEY, f"must be 1 to {MAX_USER_CHARS} printable characters")
        return Caller(self._identity.rater(name), "", EVERYTHING, "", Limits())


class KeyAccess:
    """Bearer keys, and short-lived tokens where they are set up."""

    def __init__(self, store: Store, identity: Identity, settings: config.Security) -> None:
        self._keys = KeyChecker(store)
        self._identity = identity
        self._tokens = Tokens(settings) if settings.jwt_keys else None
        self._limits = Limits(
            requests_per_minute=settings.requests_per_minute,
            concurrent_chats=settings.concurrent_chats,
            tokens_per_minute=settings.tokens_per_minute,
        )

    async def identify(self, metadata: Metadata) -> Caller:
        sent = [value for key, value in metadata if key == "authorization"]
        if any(key == USER_KEY for key, _ in metadata):
            raise InvalidInput(USER_KEY, "who calls is known from the key alone; leave this out")
        if len(sent) != 1 or not isinstance(sent[0], str):
            raise NotAuthenticated("send one key or token as metadata: authorization: Bearer <key>")
        credential = bearer(sent[0])
        if self._tokens is not None and not credential.startswith("tw_"):
            token = await self._tokens.check(credential)
            rater = self._identity.rater(token.user, token.issuer)
            return Caller(rater, token.tenant, scopes_named(token.scopes), f"user:{rater}", self._limits)
        return self._by_key(await self._keys.check(credential))

    def _by_key(self, record: KeyRecord) -> Caller:
        own = Limits()
        own.CopyFrom(self._limits)
        own.MergeFrom(record.limits)  # a limit of 0 is none, so what the key does not set stays
        return Caller(
            self._identity.rater(record.user), record.tenant, frozenset(record.scopes), f"key:{record.key_id}", own
        )
