"""The versions that this server holds in its engine, and which of them answers.

    registry says v8 is live ─► verify its files ─► load it beside v7 ─► move the pointer
                                     │ refused                             new requests: v8
                                     └─► roll the registry back            running ones: v7, to their end

A canary is loaded beside the live one and answers a share of conversations, each of them to its end.

A version that somebody uses, the live one, the one before it (for an instant rollback), the canary, and the one that
shall become live keep their places in the engine; of the others the one longest unused makes way for the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Collection
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from server import adapters, metrics
from server.adapters import BaseShape
from server.engine import Engine, Weights
from thumbwheel import tracing
from thumbwheel.artifacts import verify_version
from thumbwheel.config import Config
from thumbwheel.errors import (
    AdapterRefused,
    Conflict,
    CorruptRecord,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    StoreUnavailable,
)
from thumbwheel.registry import BASE, Registry
from thumbwheel_client.v1.record_pb2 import (
    SCOPE_ADMIN,
    VERSION_STATE_CANARY,
    VERSION_STATE_CANDIDATE,
    VERSION_STATE_REJECTED,
    VERSION_STATE_TRAINING,
    Scope,
    VersionRecord,
    VersionState,
)

log = logging.getLogger("thumbwheel.versions")

RETRY_SECONDS = 0.5
"""Between tries of a swap that the store or the lack of a place holds up."""


class Reach(IntEnum):
    """Which versions a call may use, each level with those before it."""

    PEOPLE = 0
    """Versions that serve, or have served."""
    OPERATORS = 1
    """Those that are finished."""
    LEARNER = 2
    """Those of a cycle under way."""

    @classmethod
    def of(cls, scopes: Collection[Scope.ValueType]) -> Reach:
        """Of a caller who chats."""
        return cls.OPERATORS if SCOPE_ADMIN in scopes else cls.PEOPLE


@dataclass
class Place:
    """A place in the engine. `loaded` ends when the weights can be used, or with the reason why they cannot."""

    weights: Weights
    state: VersionState.ValueType
    loaded: asyncio.Task[None] | None
    traceparent: str = ""
    """Where the cycle that made it stands in a trace."""
    users: int = 0
    used: float = field(default_factory=time.monotonic)


class Versions:
    """Call `start` before anything else, and keep `follow` running."""

    def __init__(self, engine: Engine, registry: Registry, config: Config) -> None:
        self._engine = engine
        self._registry = registry
        self._limits = config.server
        self._share = config.release.share
        self._root = config.artifact_root
        self._model = config.model.adapted
        self._base: BaseShape | None = None
        self._places = {BASE: Place(Weights(BASE, 0, None), VersionState.VERSION_STATE_LIVE, None)}
        self._live = BASE
        self._previous = BASE
        self._target = BASE
        self._trial = ""
        """The version that shall be canary here; "" if none."""
        self._canary = ""
        """The same once it is loaded."""
        self._moved = asyncio.Condition()

    @property
    def live(self) -> str:
        """Name of the version that answers on this server."""
        return self._live

    @property
    def canary(self) -> str:
        """Name of the version that answers a share of conversations on this server; "" if none does."""
        return self._canary

    def choose(self, conversation: bytes) -> str | None:
        """The version for a conversation: the canary for the same share of them on every server; else None, the live.

        Each trial draws anew, or the same people would be the first to meet every new version.
        """
        if not self._canary:
            return None
        draw = hashlib.sha256(self._canary.encode() + b"\0" + conversation).digest()
        return self._canary if int.from_bytes(draw[:8], "big") < self._share * 2**64 else None

    def answers(self, record: VersionRecord, reach: Reach) -> bool:
        """Whether this server answers with the version, if it is asked to."""
        return _fault(record.state, reach) is None and (not self._engine.one_version or record.name == self._live)

    async def start(self) -> None:
        """Makes the registry's live version answer, or the one before it if this one is refused.

        Raises:
            StoreUnavailable: the registry cannot be asked.
            NotFound: the model's folder holds no checkpoint in safetensors.
        """
        # Now, though only adapters need it: reading the base takes seconds, and the first swap should not.
        self._base = await asyncio.to_thread(BaseShape.read, self._model)
        while True:
            self._target = (await self._registry.live()).name
            if await self._move():
                metrics.show_live(self._live)
                return

    async def follow(self) -> None:
        """Follows the registry's live version until cancelled.

        Raises:
            EngineDead: no version can be loaded any more.
        """
        async with aclosing(self._registry.changes()) as changes:
            news = asyncio.ensure_future(anext(changes))
            move: asyncio.Task[bool] | None = None
            trial: asyncio.Task[None] | None = None
            try:
                while True:
                    waiting: list[asyncio.Future[Any]] = [task for task in (news, move, trial) if task is not None]
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if trial is not None and trial.done():
                        trial.result()
                        trial = None
                    if move is not None and move.done():
                        move.result()
                        move = None
                    if news.done():
                        record, live = news.result()
                        news = asyncio.ensure_future(anext(changes))
                        self._note(record)
                        if self._next_trial(record, live):
                            await _cancel(trial)
                            trial = asyncio.create_task(self._try_canary(self._trial)) if self._trial else None
                        if live != self._target:
                            # A newer target does not wait for an older one: rolling back must not last as long as
                            # the load that it makes needless.
                            await _cancel(move)
                            self._target = live
                            move = asyncio.create_task(self._move())
            finally:
                await _cancel(move)
                await _cancel(trial)
                await _cancel(news)

    async def wait_live(self, name: str, timeout: float) -> None:
        """Returns once `name` answers on this server.

        Raises:
            TimeoutError: it did not within `timeout` seconds.
        """
        async with asyncio.timeout(timeout), self._moved:
            await self._moved.wait_for(lambda: self._live == name)

    async def engine_died(self) -> None:
        """Ends the trial that this server took part in: if the canary did it, one engine after another would die of it.

        An innocent one is taken back as well, which costs a cycle; who did it cannot be told from outside.
        """
        if self._trial:
            log.error("canary_refused", extra={"version": self._trial, "reason": "the engine died during its trial"})
            # Without a store nobody can be told; a canary that did it will be found out by the next engine's death.
            with suppress(Conflict, StoreUnavailable):
                await self._registry.end_trial(self._trial, "the engine died during its trial", promote=False)

    @asynccontextmanager
    async def use(self, name: str | None = None, reach: Reach = Reach.OPERATORS) -> AsyncIterator[Weights]:
        """Holds a version for who wants an answer from it; None means the live one, which never waits.

        Raises:
            NotReady: it is not live, and only the live one can answer here.
            As `hold` does.
        """
        if self._engine.one_version:
            if name not in (None, self._live):
                raise NotReady(
                    f"version {name} is not live, and this server answers with the live version only (server.weights "
                    'is "merged"); ask one that holds adapters'
                )
            # Not held: an answer goes on under whatever becomes live, and what it began with may make way.
            yield self._places[self._live].weights
            return
        async with self.hold(self._live if name is None else name, reach) as weights:
            yield weights

    @asynccontextmanager
    async def hold(self, name: str, reach: Reach = Reach.OPERATORS) -> AsyncIterator[Weights]:
        """Keeps a version in the engine for as long as the context lasts; loads it first where needed.

        Raises:
            NotFound: no such version.
            InvalidInput: it was rejected, or is beyond `reach`.
            AdapterRefused: its files must not reach the engine.
            Overloaded: every place is in use.
        """
        place = self._places[name] if name == self._live else await self._find(name, reach)
        place.users += 1
        try:
            if place.loaded is not None:
                # Shielded: others wait for the same load, and one caller who leaves must not end it.
                await asyncio.shield(place.loaded)
            yield place.weights
        finally:
            place.users -= 1
            place.used = time.monotonic()

    async def _move(self) -> bool:
        """Loads `_target` and moves the pointer to it; or, where it is refused, takes it back and returns false."""
        name, started = self._target, time.monotonic()
        while True:
            try:
                with tracing.span("swap", {"thumbwheel.version": name}) as step:
                    async with self.hold(name, Reach.LEARNER) as weights:
                        step.link([self._places[name].traceparent])
                        if name != self._live:
                            await self._point(weights)
                            metrics.SWAPS.labels("moved").inc()
                            metrics.SWAP_SECONDS.observe(time.monotonic() - started)
                return True
            except (AdapterRefused, CorruptRecord, InvalidInput, NotFound) as error:
                metrics.SWAPS.labels("refused").inc()
                await self._take_back(name, str(error))
                self._target = self._live
                return False
            except (StoreUnavailable, Overloaded) as error:
                log.warning("swap_waits", extra={"version": name, "error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    def _next_trial(self, record: VersionRecord, live: str) -> bool:
        """Whether the trial that this server takes part in changes with this news."""
        before = self._trial
        if record.state == VERSION_STATE_CANARY and not self._engine.one_version:
            self._trial = record.name
        elif record.name in (self._trial, live):
            self._trial = ""  # after the live version comes the canary, if there still is one
        if self._trial != before:
            self._canary = ""
        return self._trial != before

    async def _try_canary(self, name: str) -> None:
        """Loads the canary beside the live version, and lets it answer; or, where it is refused, ends its trial."""
        while True:
            try:
                with tracing.span("canary", {"thumbwheel.version": name}) as step:
                    async with self.hold(name, Reach.OPERATORS):
                        step.link([self._places[name].traceparent])
                        self._canary = name
                        log.info("canary_answers", extra={"version": name, "share": self._share})
                return
            except (AdapterRefused, CorruptRecord, InvalidInput, NotFound) as error:
                log.error("canary_refused", extra={"version": name, "reason": str(error)})
                try:
                    await self._registry.end_trial(name, f"a server refused it: {error}", promote=False)
                    return
                except Conflict:
                    return  # somebody else did
                except StoreUnavailable:
                    await asyncio.sleep(RETRY_SECONDS)
            except (StoreUnavailable, Overloaded) as error:
                log.warning("canary_waits", extra={"version": name, "error": str(error)})
                await asyncio.sleep(RETRY_SECONDS)

    async def _point(self, weights: Weights) -> None:
        name = weights.name
        # No wait between these two: a call that reads the new name must be answered by its weights.
        self._previous, self._live = self._live, name
        await self._engine.switch(weights)
        metrics.show_live(name)
        log.info("swapped", extra={"version": name, "previous": self._previous})
        async with self._moved:
            self._moved.notify_all()

    async def _take_back(self, name: str, reason: str) -> None:
        """Rolls the registry back from a version that this server must not load."""
        log.error("version_refused", extra={"version": name, "reason": reason})
        while True:
            try:
                await self._registry.roll_back(f"a server refused it: {reason}", expected_live=name)
                return
            except (Conflict, NotReady):
                return  # somebody else did
            except StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)

    def _note(self, record: VersionRecord) -> None:
        """A rejected version is not for use any more, even where it is loaded; a released one is for all."""
        place = self._places.get(record.name)
        if place is not None:
            place.state = record.state

    async def _find(self, name: str, reach: Reach) -> Place:
        """The version's place, new if it had none. The registry is asked only then, so pins outlive the store."""
        place = self._places.get(name)
        if place is not None and _fault(place.state, reach) is None:
            return place
        record = await self._registry.get(name)
        if fault := _fault(record.state, reach):
            raise InvalidInput("version", f"{name} {fault}")
        place = self._places.get(name)  # again: somebody may have been faster
        if place is None:
            place = Place(
                Weights(name, record.adapter_id, self._root / record.path), record.state, None, record.traceparent
            )
            self._places[name] = place
            place.loaded = asyncio.create_task(self._load(record, place), name=f"load-{name}")
            # Whoever waited for it may be gone when it fails.
            place.loaded.add_done_callback(lambda task: task.cancelled() or task.exception())
        place.state = record.state
        return place

    async def _load(self, record: VersionRecord, place: Place) -> None:
        try:
            await asyncio.to_thread(self._verify, record)
            await self._make_room(place)
            await self._engine.load(place.weights)
        except BaseException as error:
            del self._places[record.name]
            if isinstance(error, AdapterRefused):
                metrics.REFUSED_ADAPTERS.labels(error.reason).inc()
            raise
        log.info("loaded", extra={"version": record.name, "adapter_id": record.adapter_id})

    def _verify(self, record: VersionRecord) -> None:
        """Reads every byte of the version; in a thread, so that streams go on."""
        assert self._base is not None, "start comes first"
        try:
            facts = verify_version(self._root, record).get("facts")
            folder = self._root / record.path
            adapters.verify(folder, facts if isinstance(facts, dict) else {}, self._base, self._limits)
        except OSError as error:
            raise AdapterRefused("unreadable", f"{record.name} cannot be read: {error.strerror}") from error

    async def _make_room(self, coming: Place) -> None:
        """Unloads versions longest unused, until the engine's places are enough for all that hold one.

        Raises:
            Overloaded: all others are in use.
        """
        while len(self._places) - 1 > self._limits.max_adapters:  # the base needs no place
            kept = {BASE, self._live, self._previous, self._target, self._trial}
            idle = [
                place
                for name, place in self._places.items()
                if name not in kept and place is not coming and place.users == 0 and _is_loaded(place)
            ]
            if not idle:
                raise Overloaded(f"all {self._limits.max_adapters} places for versions are in use", RETRY_SECONDS)
            leaving = min(idle, key=lambda place: (place.state != VERSION_STATE_REJECTED, place.used))
            # Out of the books first: from here on nobody can begin to use it.
            del self._places[leaving.weights.name]
            await self._engine.unload(leaving.weights.adapter_id)
            log.info("unloaded", extra={"version": leaving.weights.name})


def _fault(state: VersionState.ValueType, reach: Reach) -> str | None:
    """Why a version in this state must not be used."""
    if state == VERSION_STATE_REJECTED:
        return "was rejected and answers nobody"
    if state == VERSION_STATE_TRAINING and reach < Reach.LEARNER:
        return "is still training and answers nobody"
    if state == VERSION_STATE_CANDIDATE and reach < Reach.OPERATORS:
        return "has not been released"
    return None


def _is_loaded(place: Place) -> bool:
    return place.loaded is not None and place.loaded.done()


async def _cancel(task: asyncio.Future[Any] | None) -> None:
    if task is None:
        return
    while not task.done():
        task.cancel()
        # More than once: on Python 3.11 asyncio.wait_for, through which the store's client works, may lose a
        # cancellation, and the next command lasts for seconds.
        await asyncio.wait((task,), timeout=0.1)
    if not task.cancelled():
        task.exception()
