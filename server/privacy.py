"""PrivacyService, and the prefix caches that hear of an erasure."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from grpc import aio

from server.engine import Engine
from server.identity import MAX_USER_CHARS, Identity
from thumbwheel.erasure import Erasure
from thumbwheel.errors import InvalidInput, StoreUnavailable
from thumbwheel_client.v1 import privacy_pb2, privacy_pb2_grpc

log = logging.getLogger("thumbwheel.privacy")

POLL_SECONDS = 1.0
"""How long after an erasure a server's engine may still remember the person's prompts."""


class PrivacyService(privacy_pb2_grpc.PrivacyServiceServicer):
    """Erases on behalf of people."""

    def __init__(self, erasure: Erasure, identity: Identity) -> None:
        self._erasure = erasure
        self._identity = identity

    async def Erase(
        self, request: privacy_pb2.EraseRequest, context: aio.ServicerContext[Any, Any]
    ) -> privacy_pb2.EraseResponse:
        for field, name, least in (("user", request.user, 1), ("issuer", request.issuer, 0)):
            if not least <= len(name) <= 8 * MAX_USER_CHARS or not name.isprintable():
                raise InvalidInput(field, f"must be {least} to {8 * MAX_USER_CHARS} printable characters")
        rater = self._identity.rater(request.user, request.issuer)
        erased = await self._erasure.erase(rater)
        log.info("erased", extra={"rater": rater, "turns": erased.turns, "votes": erased.votes})
        return privacy_pb2.EraseResponse(turns=erased.turns, votes=erased.votes, versions=erased.versions)


async def forget_with(erasure: Erasure, engine: Engine) -> None:
    """Until cancelled: empties the engine's prefix cache after every erasure, whichever server made it."""
    seen: int | None = None
    while True:
        try:
            now = await erasure.erasures()
        except StoreUnavailable:
            pass  # the next look will tell; the erasure itself had to reach the store
        else:
            if seen is not None and now != seen:
                await engine.forget_prompts()
                log.info("prompts_forgotten")
            seen = now
        await asyncio.sleep(POLL_SECONDS)
