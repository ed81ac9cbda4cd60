"""One turn, from its admission to its record.

    limits ─► places ─► version ─► receipts ─► deltas of n answers, interleaved
                                               per answer at its end: place back, record, finish

An answer's record is written after its last token and beside the other answers' tokens, never between tokens.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

from server import metrics
from server.access import Caller
from server.admission import Admission
from server.engine import Chunk, Engine
from server.limits import Budgets, Spending
from server.question import Question
from server.sampling import sampling_message
from server.streams import stream
from server.versions import Reach, Versions
from thumbwheel import tracing
from thumbwheel.errors import InvalidInput
from thumbwheel.records import now, response_id
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, record_pb2
from thumbwheel_client.v1.chat_pb2 import StreamChatResponse as Event

log = logging.getLogger("thumbwheel.turns")

STORE = {"db.system.name": "redis"}
REASONS = {"stop": record_pb2.FINISH_REASON_STOP, "length": record_pb2.FINISH_REASON_LENGTH}


def new_turn_id() -> str:
    """Sorts by time (48 bits of milliseconds), unique by 80 random bits, as a UUID version 7 does."""
    return f"t{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@dataclass(frozen=True, slots=True)
class Told:
    """An event of an answer, and what was sampled since the one before: tokens and their log-probabilities in nats."""

    event: Event
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()


class Answer:
    """What has been sampled of one answer."""

    def __init__(self, turn_id: str, index: int, version: str) -> None:
        self.record = record_pb2.ResponseRecord(
            response_id=response_id(turn_id, index),
            index=index,
            spans=[record_pb2.VersionSpan(version=version, first_token=0)],
        )
        self.finished = False
        self._texts: list[str] = []
        self._first_token: float | None = None
        self._told = 0

    def add(self, chunk: Chunk) -> None:
        self._texts.append(chunk.text)
        for place, version in chunk.changes:
            self.record.spans.add(version=version, first_token=len(self.record.token_ids) + place)
        self.record.token_ids.extend(chunk.token_ids)
        self.record.logprobs.extend(chunk.logprobs)
        if self._first_token is None and chunk.token_ids:
            self._first_token = time.monotonic()

    def tell(self, event: Event) -> Told:
        """The event, with the tokens that no event before it came with."""
        began, self._told = self._told, len(self.record.token_ids)
        return Told(event, self.record.token_ids[began:], self.record.logprobs[began:])

    def finish(self, reason: record_pb2.FinishReason.ValueType) -> None:
        """Closes the record."""
        self.finished = True
        self.record.text = "".join(self._texts)
        self.record.finish_reason = reason
        self.record.finished_at.GetCurrentTime()
        tokens = len(self.record.token_ids)
        metrics.TOKENS.labels("completion").inc(tokens)
        if tokens > 1 and self._first_token is not None:
            metrics.TIME_PER_OUTPUT_TOKEN.observe((time.monotonic() - self._first_token) / (tokens - 1))


class Turns:
    """Answers questions and logs what was answered."""

    def __init__(
        self, engine: Engine, versions: Versions, admission: Admission, budgets: Budgets, turn_log: TurnLog
    ) -> None:
        self._engine = engine
        self._versions = versions
        self._admission = admission
        self._budgets = budgets
        self._log = turn_log
        self._answering: dict[str, asyncio.Event] = {}
        self._writing: dict[asyncio.Task[None], str] = {}

    def answer(self, question: Question, caller: Caller) -> AsyncGenerator[Told, None]:
        """The events of a turn: for each answer a receipt, deltas, a finish. Closing it aborts the turn at once.

        Raises:
            Overloaded: the queue is full, or the caller has used up a limit.
            NotFound, NotReady, AdapterRefused: the pinned version cannot answer.
            EngineDead: the engine is gone.
        """
        return stream(lambda emit: self._within_limits(question, caller, emit))

    async def settle(self) -> None:
        """Waits until every record has been handed to the turn log."""
        while self._writing:
            await asyncio.wait(self._writing)

    async def written(self, turn_id: str) -> bool:
        """Waits until what this server answers of a turn is in the log; False if it was not on its way there."""
        ended = self._answering.get(turn_id)
        if ended is not None:
            await ended.wait()
        writes = [write for write, written in self._writing.items() if written == turn_id]
        if writes:
            await asyncio.wait(writes)
        return await self._log.written(turn_id) or ended is not None or bool(writes)

    async def _within_limits(self, question: Question, caller: Caller, emit: Callable[[Told], None]) -> None:
        prompt, most = len(question.prompt_token_ids), question.n * question.sampling.max_tokens
        async with self._budgets.chat(caller, prompt + most) as spending:
            spending.used = prompt
            await self._run(question, caller, spending, emit)

    async def _run(self, question: Question, caller: Caller, spending: Spending, emit: Callable[[Told], None]) -> None:
        arrived = time.monotonic()
        writes: list[asyncio.Task[None]] = []
        reach = Reach.of(caller.scopes)
        with tracing.span("queue"):
            admitted = await self._admission.chat(question.n)
        with admitted as places, self._turn(question, caller) as turn:
            # The version is read after the wait, so a call that queued across a swap is answered by the new one.
            async with AsyncExitStack() as held:
                try:
                    name = question.version or self._versions.choose(_conversation(question, caller))
                    weights = await held.enter_async_context(self._versions.use(name, reach))
                except InvalidInput as error:
                    raise InvalidInput("input.version", error.message) from error
                answers = [Answer(turn.turn_id, index, weights.name) for index in range(question.n)]
                for answer in answers:
                    emit(_receipt(turn.turn_id, answer, weights.name))
                metrics.TOKENS.labels("prompt").inc(len(question.prompt_token_ids))
                chunks = self._engine.generate(
                    turn.turn_id,
                    question.prompt_token_ids,
                    question.sampling,
                    question.n,
                    weights,
                    tenant=caller.tenant,
                )
                await held.enter_async_context(aclosing(chunks))
                sampling = held.enter_context(tracing.span("chat", _asked(question, weights.name)))
                phase = tracing.begin("prefill")
                waiting = True
                try:
                    async for chunk in chunks:
                        if waiting:
                            metrics.TIME_TO_FIRST_TOKEN.observe(time.monotonic() - arrived)
                            sampling.tell(gen_ai__response__time_to_first_chunk=time.monotonic() - arrived)
                            phase.end()
                            phase = tracing.begin("decode")
                            waiting = False
                        answer = answers[chunk.index]
                        answer.add(chunk)
                        spending.used += len(chunk.token_ids)
                        if chunk.text:
                            emit(answer.tell(Event(index=chunk.index, delta=chunk.text)))
                        if chunk.finish:
                            answer.finish(REASONS[chunk.finish])
                            places.give_back_one()
                            writes.append(self._write(turn.turn_id, self._finish(turn, answer, emit)))
                except asyncio.CancelledError:
                    self._keep_cancelled(turn, answers)
                    raise
                finally:
                    phase.end()
                    sampling.tell(gen_ai__usage__output_tokens=sum(len(answer.record.token_ids) for answer in answers))
        await asyncio.wait(writes)  # not gather: if the caller leaves now, the records are still written
        for write in writes:
            write.result()

    def _keep_cancelled(self, turn: record_pb2.TurnRecord, answers: list[Answer]) -> None:
        """What a caller saw before it left can be rated and trained on like anything else."""
        for answer in answers:
            if not answer.finished and answer.record.token_ids:
                answer.finish(record_pb2.FINISH_REASON_CANCELLED)
                self._write(turn.turn_id, self._append(turn, answer))

    @contextmanager
    def _turn(self, question: Question, caller: Caller) -> Iterator[record_pb2.TurnRecord]:
        """A new turn's record, until its last answer ended and is being written."""
        turn = _turn_record(question, caller.rater)
        ended = self._answering[turn.turn_id] = asyncio.Event()
        try:
            yield turn
        finally:
            del self._answering[turn.turn_id]
            ended.set()

    def _write(self, turn_id: str, write: Coroutine[Any, Any, Any]) -> asyncio.Task[None]:
        """A task that outlives the call: a caller who leaves does not take the record along."""
        task = asyncio.ensure_future(write)
        self._writing[task] = turn_id
        task.add_done_callback(self._written)
        return task

    def _written(self, task: asyncio.Task[None]) -> None:
        del self._writing[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("turn_not_logged", exc_info=error)

    async def _append(self, turn: record_pb2.TurnRecord, answer: Answer) -> chat_pb2.LogStatus.ValueType:
        with tracing.span("append_turn", STORE) as step:
            status = await self._log.append(turn, answer.record)
            step.tell(thumbwheel__log_status=chat_pb2.LogStatus.Name(status))
        metrics.LOGGED_ANSWERS.labels(chat_pb2.LogStatus.Name(status).removeprefix("LOG_STATUS_").lower()).inc()
        if len(answer.record.spans) > 1:
            metrics.CROSSED_ANSWERS.inc()
        return status

    async def _finish(self, turn: record_pb2.TurnRecord, answer: Answer, emit: Callable[[Told], None]) -> None:
        status = await self._append(turn, answer)
        usage = chat_pb2.Usage(prompt_tokens=len(turn.prompt_token_ids), completion_tokens=len(answer.record.token_ids))
        finish = chat_pb2.Finish(reason=answer.record.finish_reason, usage=usage, log_status=status)
        if len(answer.record.spans) > 1:
            finish.spans.extend(answer.record.spans)
        emit(answer.tell(Event(index=answer.record.index, finish=finish)))


def _turn_record(question: Question, owner: str) -> record_pb2.TurnRecord:
    return record_pb2.TurnRecord(
        turn_id=new_turn_id(),
        conversation_id=question.conversation_id,
        owner=owner,
        created_at=now(),
        messages=question.messages,
        prompt_token_ids=question.prompt_token_ids,
        sampling=sampling_message(question.sampling),
        pinned=question.version is not None,
        traceparent=tracing.traceparent(),
    )


def _asked(question: Question, version: str) -> dict[str, tracing.Fact]:
    """What a trace tells of a chat: nothing of what is said."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "thumbwheel",
        "gen_ai.response.model": version,
        "gen_ai.request.max_tokens": question.sampling.max_tokens,
        "gen_ai.request.temperature": question.sampling.temperature,
        "gen_ai.request.choice.count": question.n,
        "gen_ai.usage.input_tokens": len(question.prompt_token_ids),
    }


def _conversation(question: Question, caller: Caller) -> bytes:
    """What stays the same from one message of a conversation to the next: who speaks, and how it began."""
    opening = next((m.content for m in question.messages if m.role == record_pb2.ROLE_USER), "")
    return "\0".join((caller.tenant, caller.rater, opening)).encode()


def _receipt(turn_id: str, answer: Answer, version: str) -> Told:
    receipt = chat_pb2.Receipt(response_id=answer.record.response_id, version=version, turn_id=turn_id)
    return Told(Event(index=answer.record.index, receipt=receipt))
