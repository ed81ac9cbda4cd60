"""Short-lived tokens (JWT, as OpenID Connect issues them): an application can name its users without a key for each."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import jwt

from thumbwheel import config
from thumbwheel.errors import NotAuthenticated, SetupError
from thumbwheel.secret_files import read_file

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures by a private key only: with a shared secret whoever can check a token could make one."""
LEEWAY = 10
"""Seconds by which clocks may differ."""
FETCH_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Token:
    """What a valid token says. `scopes` are those that tokens may give."""

    user: str
    issuer: str
    tenant: str
    scopes: frozenset[str]


class Tokens:
    """Checks signature, issuer, audience and time.

    Raises:
        SetupError: the file of keys cannot be read.
    """

    def __init__(self, settings: config.Security) -> None:
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._scopes = frozenset(settings.jwt_scopes.split())
        self._file: Path | None = None
        self._remote: jwt.PyJWKClient | None = None
        if urlparse(settings.jwt_keys).scheme in ("http", "https"):
            self._remote = jwt.PyJWKClient(settings.jwt_keys, cache_keys=True, timeout=FETCH_SECONDS)
        else:
            self._file = Path(settings.jwt_keys).expanduser()
            self._key_set()

    async def check(self, token: str) -> Token:
        """
        Raises:
            NotAuthenticated: says which check failed.
        """
        try:
            # In a thread: a new key of the issuer's is fetched over the network.
            claims = await asyncio.to_thread(self._claims, token)
        except (jwt.PyJWTError, SetupError) as error:
            raise NotAuthenticated(f"this token is not valid: {error}") from error
        subject, tenant, scope = claims["sub"], claims.get("tenant", ""), claims.get("scope", "")
        given = frozenset(scope.split() if isinstance(scope, str) else ())
        return Token(subject, self._issuer, f"{self._issuer}\0{tenant or subject}", given & self._scopes)

    def _claims(self, token: str) -> dict[str, Any]:
        claims: dict[str, Any] = jwt.decode(
            token,
            self._signing_key(token),
            algorithms=ALGORITHMS,
            issuer=self._issuer,
            audience=self._audience,
            leeway=LEEWAY,
            options={"require": ["exp", "sub", "iss", "aud"]},
        )
        return claims

    def _signing_key(self, token: str) -> jwt.PyJWK:
        if self._remote is not None:
            return self._remote.get_signing_key_from_jwt(token)
        name = jwt.get_unverified_header(token).get("kid")
        for key in self._key_set().keys:
            if name is None or key.key_id == name:
                return key
        raise jwt.InvalidKeyError(f"no key {name!r} in {self._file}")

    def _key_set(self) -> jwt.PyJWKSet:
        """Read each time: it is small, and a changed file counts at once."""
        data = read_file(str(self._file), "security.jwt_keys")
        try:
            return jwt.PyJWKSet.from_dict(json.loads(data))
        except (ValueError, jwt.PyJWTError) as error:
            raise SetupError(f"security.jwt_keys: {self._file} is not a JWKS: {error}") from error
