"""Who may sample now. A place is one answer being sampled.

People first: chat takes any place, waits in one short queue in order of arrival, and is refused when the queue is full.
The learner's rollouts take what is left. When somebody begins to chat, all but a few give their places back at once,
and those few too where chat needs them: their samples start again later. So chat neither waits behind a rollout nor
crawls in a batch full of them. Rollouts come back after a lull: who asks one question after the other would find a
batch full of them, just begun and in vain, before each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from server import metrics
from thumbwheel import config
from thumbwheel.errors import InvalidInput, Overloaded

T = TypeVar("T")

FIRST_GUESS = 2.0
"""Seconds an answer takes, before one has been seen."""
LULL = 1.0
"""Seconds without chat after which nobody chats any more."""


class ChatPlaces:
    """The places of one turn's answers, from a granted ``Admission.chat`` to the end of its ``with`` block."""

    def __init__(self, admission: Admission, count: int) -> None:
        self._admission = admission
        self._count = count
        self._since = asyncio.get_running_loop().time()

    def give_back_one(self) -> None:
        """For an answer that ended before the others of its turn."""
        assert self._count > 0, "a place was given back twice"
        self._count -= 1
        self._admission._end_chat(1, asyncio.get_running_loop().time() - self._since)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._count:
            self.give_back_one()


class Admission:
    """Counts places; every method runs on the event loop's thread."""

    def __init__(self, limits: config.Server) -> None:
        self._limits = limits
        self._chats = 0
        self._chat_queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._rollouts: list[asyncio.Future[None]] = []  # oldest first; set when the place is wanted back
        self._rollout_queue: deque[asyncio.Future[asyncio.Future[None]]] = deque()
        self._answer_seconds = FIRST_GUESS
        self._lull: asyncio.TimerHandle | None = None  # runs while people may be back at once

    @property
    def queued(self) -> int:
        """Chat answers that wait."""
        return sum(count for count, _ in self._chat_queue)

    async def chat(self, count: int) -> ChatPlaces:
        """Waits for `count` places; use the result as a context manager.

        Raises:
            InvalidInput: more answers than this server has places.
            Overloaded: the queue is full.
        """
        if count > self._limits.max_sequences:
            raise InvalidInput("input.n", f"{count} answers; this server samples at most {self._limits.max_sequences}")
        if not self._chat_queue and self._chat_fits(count):
            self._begin_chat(count)
            return ChatPlaces(self, count)
        if self.queued + count > self._limits.max_queue:
            raise Overloaded(
                f"{self.queued} answers wait for a place and at most {self._limits.max_queue} may",
                self._retry_after(count),
            )
        turn = asyncio.get_running_loop().create_future()
        self._chat_queue.append((count, turn))
        self._changed()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):  # a grant that came between has taken it out already
                    self._chat_queue.remove((count, turn))
                self._grant()
            else:  # granted in the same moment
                self._end_chat(count, None)
            raise
        return ChatPlaces(self, count)

    async def rollout(self, sample: Coroutine[Any, Any, T]) -> T | None:
        """Runs `sample` once there is a place to spare. None: the place was taken back and the sample cancelled."""
        try:
            revoked = await self._rollout_place()
        except BaseException:
            sample.close()
            raise
        task = asyncio.ensure_future(sample)
        try:
            await asyncio.wait((task, revoked), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            metrics.REVOKED_ROLLOUTS.inc()
            return None
        finally:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
            finally:
                self._end_rollout(revoked)

    async def _rollout_place(self) -> asyncio.Future[None]:
        """A place; the future is set when it is wanted back."""
        loop = asyncio.get_running_loop()
        if self._rollout_queue or not self._rollout_fits():
            turn: asyncio.Future[asyncio.Future[None]] = loop.create_future()
            self._rollout_queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    with suppress(ValueError):
                        self._rollout_queue.remove(turn)
                else:
                    self._end_rollout(turn.result())
                raise
            return turn.result()
        return self._begin_rollout()

    def _chat_fits(self, count: int) -> bool:
        """Rollouts do not count: they make room."""
        return self._chats + count <= self._limits.max_sequences

    def _rollout_fits(self) -> bool:
        busy = self._chats > 0 or bool(self._chat_queue) or self._lull is not None
        most = self._limits.rollout_sequences_busy if busy else self._limits.rollout_sequences
        # One place stays free even without chat, so that the first person to come waits for nobody.
        total = max(self._limits.max_sequences - 1, 1)
        return len(self._rollouts) < most and self._chats + len(self._rollouts) < total and not self._chat_queue

    def _begin_chat(self, count: int) -> None:
        self._chats += count
        self._end_lull()
        room = self._limits.max_sequences - self._chats
        excess = len(self._rollouts) - min(room, self._limits.rollout_sequences_busy)
        if excess > 0:
            for revoked in self._rollouts[-excess:]:  # the youngest: the least work is lost
                revoked.set_result(None)
            del self._rollouts[-excess:]
        self._changed()

    def _end_chat(self, count: int, seconds: float | None) -> None:
        self._chats -= count
        if not self._chats:
            self._end_lull()
            self._lull = asyncio.get_running_loop().call_later(LULL, self._all_quiet)
        if seconds is not None:
            self._answer_seconds += 0.1 * (seconds - self._answer_seconds)
        self._grant()

    def _end_lull(self) -> None:
        if self._lull is not None:
            self._lull.cancel()
            self._lull = None

    def _all_quiet(self) -> None:
        self._lull = None
        self._grant()

    def _begin_rollout(self) -> asyncio.Future[None]:
        revoked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._rollouts.append(revoked)
        self._changed()
        return revoked

    def _end_rollout(self, revoked: asyncio.Future[None]) -> None:
        if revoked in self._rollouts:
            self._rollouts.remove(revoked)
        self._grant()

    def _grant(self) -> None:
        """Hands free places on, to chat first and in order of arrival: a large turn is not overtaken by small ones."""
        while self._chat_queue and self._chat_fits(self._chat_queue[0][0]):
            count, turn = self._chat_queue.popleft()
            if not turn.cancelled():
                self._begin_chat(count)
                turn.set_result(None)
        while self._rollout_queue and self._rollout_fits():
            waiting = self._rollout_queue.popleft()
            if not waiting.cancelled():
                waiting.set_result(self._begin_rollout())
        self._changed()

    def _retry_after(self, count: int) -> float:
        """Seconds until the queue has probably moved by `count` answers, 0.5 to 30."""
        rounds = (self.queued + count) / self._limits.max_sequences
        return min(max(rounds * self._answer_seconds, 0.5), 30.0)

    def _changed(self) -> None:
        metrics.QUEUED_ANSWERS.set(self.queued)
        metrics.RUNNING_ANSWERS.labels("chat").set(self._chats)
        metrics.RUNNING_ANSWERS.labels("rollout").set(len(self._rollouts))
