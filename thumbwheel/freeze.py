"""The learner's brake: once a tripwire has tripped it trains nothing until a person lets it go on.

The mark lies in the store, so that it outlives the learner and binds whoever leads next. It holds figures and names of
answers, and nothing that anybody has said.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.struct_pb2 import Struct

from thumbwheel.errors import Conflict, CorruptRecord, LeaseLost
from thumbwheel.lease import Lease
from thumbwheel.records import seal, unseal
from thumbwheel.store import Store, Value

log = logging.getLogger("thumbwheel.freeze")


@dataclass(frozen=True, slots=True)
class Tripped:
    """One wire, what was found in a sentence of figures, and ids of up to five answers that show it."""

    wire: str
    words: str
    samples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Frozen:
    """Why and since when the learner stands.

    `digest` is that of the batch it stands at, `at` a time in ISO 8601, `sealed` how all this is stored.
    """

    cycle_id: str
    digest: str
    at: str
    tripped: tuple[Tripped, ...]
    sealed: bytes


class Brake:
    """Of one namespace."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def frozen(self) -> Frozen | None:
        """Why the learner stands; None if it does not. A mark that cannot be read holds, too."""
        sealed = await self._store.call("GET", self._store.keys.frozen)
        if sealed is None:
            return None
        try:
            facts: dict[str, Any] = MessageToDict(unseal(Struct, sealed))
        except CorruptRecord as error:
            log.error("corrupt_freeze", extra={"error": str(error)})
            return Frozen("", "", "", (Tripped("unknown", f"the mark cannot be read: {error}"),), sealed)
        tripped = tuple(Tripped(each["wire"], each["words"], tuple(each["samples"])) for each in facts["tripped"])
        return Frozen(facts["cycle_id"], facts["digest"], facts["at"], tripped, sealed)

    async def freeze(self, lease: Lease, cycle_id: str, digest: str, tripped: Sequence[Tripped]) -> None:
        """From when this returns no learner trains, until `release`.

        Raises:
            LeaseLost: another learner has led since; nothing was changed.
        """
        facts: dict[str, Any] = {
            "cycle_id": cycle_id,
            "digest": digest,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "tripped": [{"wire": each.wire, "words": each.words, "samples": list(each.samples)} for each in tripped],
        }
        keys, sealed = self._store.keys, seal(ParseDict(facts, Struct()))
        if not await self._store.script("brake", [keys.fence, keys.frozen], [lease.token, sealed], durable=True):
            raise LeaseLost(f"lease {lease.token} is no longer the newest: nothing was frozen")

    async def release(self, frozen: Frozen) -> None:
        """Lets the learner go on; its wires do not trip for that batch again.

        Raises:
            Conflict: it is not frozen, or for something else than `frozen` by now.
        """
        keys = self._store.keys
        args: list[Value] = [frozen.sealed, frozen.digest]
        if not await self._store.script("release_brake", [keys.frozen, keys.pardoned], args, durable=True):
            raise Conflict("the learner is not frozen for this reason any more; look again")

    async def pardoned(self, digest: str) -> bool:
        """Whether a person has let this batch pass."""
        kept = await self._store.call("GET", self._store.keys.pardoned)
        return kept is not None and bool(digest) and kept.decode() == digest
