"""Who goes live and who is taken back, whichever door an operator came through."""

from __future__ import annotations

from server.versions import Versions
from thumbwheel.errors import Conflict, InvalidInput, NotReady
from thumbwheel.registry import Registry
from thumbwheel_client.v1.record_pb2 import VersionRecord

MAX_REASON_CHARS = 2000
FOLLOW_SECONDS = 20.0
"""How long a call waits for this server to follow the pointer it has moved."""


class Releases:
    """Both answer once this server itself has moved; the others follow the registry."""

    def __init__(self, registry: Registry, versions: Versions) -> None:
        self._registry = registry
        self._versions = versions

    async def promote(self, name: str, reason: str) -> tuple[VersionRecord, str]:
        """Makes a version live; returns it and the name of the one before.

        Raises:
            InvalidInput: names the field.
            NotReady: it cannot go live, or this server does not follow.
            As `Registry.promote` and `Versions.hold`.
        """
        _check_reason(reason)
        check_name(name)
        # Verified and loaded first: what this server would refuse never becomes live, not even for a moment.
        async with self._versions.hold(name):
            live, previous = await self._registry.promote(name, reason)
            await self._followed(live)
        return live, previous

    async def take_back(self, reason: str, name: str = "") -> tuple[VersionRecord, str]:
        """Takes a version back; returns the one that is live then, and the name of the one taken back.

        Args:
            name: the one that is meant, live or on trial; "": the one on trial, else the live one.

        Raises:
            InvalidInput: names the field.
            NotReady: there is nothing before it; or another is live by now, or this server does not follow.
        """
        _check_reason(reason)
        try:
            live, previous = await self._taken_back(name, reason)
        except Conflict as error:  # another version went live in the same moment, and was not what the caller saw
            raise NotReady(str(error)) from error
        await self._followed(live)
        return live, previous

    async def _taken_back(self, name: str, reason: str) -> tuple[VersionRecord, str]:
        if not name:
            return await self._registry.roll_back(reason)
        canary = await self._registry.canary()
        if canary is not None and canary.name == name:
            return await self._registry.end_trial(name, reason, promote=False)
        return await self._registry.roll_back(reason, expected_live=name)

    async def _followed(self, live: VersionRecord) -> None:
        try:
            await self._versions.wait_live(live.name, FOLLOW_SECONDS)
        except TimeoutError:
            raise NotReady(
                f"{live.name} is live in the registry, but this server did not follow within {FOLLOW_SECONDS:g} s:"
                " it still loads it, has refused it, or somebody moved the pointer again; WatchVersions tells"
            ) from None


def check_name(name: str) -> None:
    """
    Raises:
        InvalidInput: no version can have this name.
    """
    if not 0 < len(name) <= 128:
        raise InvalidInput("name", "must be 1 to 128 characters")


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidInput("reason", f"{len(reason)} characters; at most {MAX_REASON_CHARS}")
