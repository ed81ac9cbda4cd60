"""What one caller may use, counted in the store: the same on however many servers."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from server import metrics
from server.access import Caller
from thumbwheel.errors import Overloaded, StoreUnavailable
from thumbwheel.store import Store, Value

log = logging.getLogger("thumbwheel.limits")

WORDS = {
    "requests_per_minute": "calls a minute",
    "concurrent_chats": "chat calls at once",
    "tokens_per_minute": "tokens a minute",
}


class Spending:
    """One chat call's share of its caller's limits; `used` is what it comes to in the end."""

    def __init__(self) -> None:
        self.used = 0


class Budgets:
    """With the store away nothing is counted: chat goes on without it.

    Args:
        longest: seconds that a call can last; one whose server died is forgotten then.
    """

    def __init__(self, store: Store, longest: float) -> None:
        self._store = store
        self._longest = int(longest * 1000)

    async def request(self, caller: Caller) -> None:
        """Counts a call that uses no tokens.

        Raises:
            Overloaded: too many in a minute.
        """
        if caller.limits.requests_per_minute:
            await self._spend(caller, "", chats=0, tokens=0)

    @asynccontextmanager
    async def chat(self, caller: Caller, tokens: int) -> AsyncIterator[Spending]:
        """Counts a chat call for as long as the context lasts.

        Args:
            tokens: the most it can use; what it does not use is given back at the end.

        Raises:
            Overloaded: more than one of the limits allows.
        """
        limits = caller.limits
        spending = Spending()
        if not (limits.requests_per_minute or limits.concurrent_chats or limits.tokens_per_minute):
            yield spending
            return
        if 0 < limits.tokens_per_minute < tokens:
            raise Overloaded(
                f"this call may use {tokens} tokens, and its caller {limits.tokens_per_minute} a minute:"
                " ask for a lower max_tokens or fewer answers",
                60.0,
            )
        call = secrets.token_hex(8)
        counted = await self._spend(caller, call, limits.concurrent_chats, tokens)
        try:
            yield spending
        finally:
            if counted:
                # Also for a caller who has left: shielded, or the place would be taken until it lapses.
                await asyncio.shield(self._settle(caller, call, max(0, tokens - spending.used)))

    async def _spend(self, caller: Caller, call: str, chats: int, tokens: int) -> bool:
        """False: the store is away."""
        limits = caller.limits
        args: list[Value] = [
            call, limits.requests_per_minute, chats, limits.tokens_per_minute, tokens, self._longest,
        ]  # fmt: skip
        try:
            reply = await self._store.script("spend", self._touched(caller), args)
        except StoreUnavailable as error:
            log.warning("limits_not_counted", extra={"error": str(error)})
            return False
        if reply:
            name = reply[0].decode()
            metrics.LIMITED_CALLS.labels(name).inc()
            raise Overloaded(f"at most {getattr(limits, name)} {WORDS[name]}; try again later", int(reply[1]) / 1000)
        return True

    async def _settle(self, caller: Caller, call: str, unused: int) -> None:
        args: list[Value] = [call, caller.limits.tokens_per_minute, unused]
        try:
            await self._store.script("settle", self._touched(caller), args)
        except StoreUnavailable as error:
            log.warning("limits_not_counted", extra={"error": str(error)})

    def _touched(self, caller: Caller) -> list[str]:
        return [self._store.keys.spent(caller.budget), self._store.keys.running(caller.budget)]
