"""Who leads. One learner at a time holds the lease; the fencing number makes sure that a late one changes nothing."""

from __future__ import annotations

import asyncio
import logging
import uuid

from thumbwheel.errors import LeaseLost, StoreUnavailable
from thumbwheel.store import Store, Value

log = logging.getLogger("thumbwheel.lease")


async def is_led(store: Store) -> bool:
    """Whether any learner leads now."""
    return bool(await store.call("EXISTS", store.keys.lease))


class Lease:
    """Leadership for `seconds` after the last sign of life.

    `token` is the fencing number: whatever the leader commits names it, and is refused once somebody else has led.
    0 until acquired.
    """

    def __init__(self, store: Store, owner: str, seconds: float) -> None:
        self.token = 0
        self._store = store
        self._holder = f"{owner}:{uuid.uuid4().hex}"
        self._seconds = seconds

    async def acquire(self) -> bool:
        """Takes the lease if nobody holds it; True if it is ours."""
        keys = self._store.keys
        answer = await self._store.script("acquire_lease", [keys.lease, keys.fence], [self._holder, self._millis])
        if answer:
            self.token = int(answer)
        return bool(answer)

    async def renew(self) -> None:
        """Gives a sign of life.

        Raises:
            LeaseLost: somebody else has led since.
        """
        keys = self._store.keys
        args: list[Value] = [self._holder, self.token, self._millis]
        if not await self._store.script("renew_lease", [keys.lease, keys.fence], args):
            raise LeaseLost(f"lease {self.token} is no longer the newest: another learner leads")

    async def release(self) -> None:
        """Lets the next one lead at once."""
        await self._store.script("release_lease", [self._store.keys.lease], [self._holder])

    async def hold(self) -> None:
        """Renews until cancelled. A store that is away costs nothing as long as nobody else takes the lease.

        Raises:
            LeaseLost: somebody else has led since.
        """
        while True:
            try:
                await self.renew()
            except StoreUnavailable as error:
                log.warning("lease_not_renewed", extra={"error": str(error)})
            await asyncio.sleep(self._seconds / 3)

    @property
    def _millis(self) -> int:
        return int(self._seconds * 1000)
