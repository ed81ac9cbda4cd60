"""An answer and what comes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thumbwheel_client.v1 import chat_pb2, record_pb2

FinishReason = Literal["stop", "length", "cancelled", "unknown"]
"""The model or a stop string ended it; max_tokens or the context was used up; its reader left; something newer."""
LogStatus = Literal["logged", "pending", "not_logged", "unknown"]
"""It can be rated; it can be once the server's store is back; it cannot; something newer."""

_REASONS: dict[record_pb2.FinishReason.ValueType, FinishReason] = {
    record_pb2.FINISH_REASON_STOP: "stop",
    record_pb2.FINISH_REASON_LENGTH: "length",
    record_pb2.FINISH_REASON_CANCELLED: "cancelled",
}
_STATUSES: dict[chat_pb2.LogStatus.ValueType, LogStatus] = {
    chat_pb2.LOG_STATUS_LOGGED: "logged",
    chat_pb2.LOG_STATUS_PENDING: "pending",
    chat_pb2.LOG_STATUS_NOT_LOGGED: "not_logged",
}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What is going to answer, said before the first token.

    Attributes:
        response_id: names the answer when it is rated.
        version: the exact version that samples it.
        turn_id: the turn; the answers of one turn can be ranked.
    """

    response_id: str
    version: str
    turn_id: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of the prompt after the chat template, and tokens sampled for this answer."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Span:
    """From token `first_token` on, up to the next span, this version sampled."""

    version: str
    first_token: int


@dataclass(frozen=True, slots=True)
class Finish:
    """How an answer ended.

    Attributes:
        spans: which version sampled which tokens, where that is not the receipt's all along; else empty.
    """

    reason: FinishReason
    usage: Usage
    log_status: LogStatus
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    text: str
    receipt: Receipt
    finish: Finish


def receipt_of(message: chat_pb2.Receipt) -> Receipt:
    """A receipt as it came."""
    return Receipt(message.response_id, message.version, message.turn_id)


def finish_of(message: chat_pb2.Finish) -> Finish:
    """A finish as it came."""
    return Finish(
        reason=_REASONS.get(message.reason, "unknown"),
        usage=Usage(message.usage.prompt_tokens, message.usage.completion_tokens),
        log_status=_STATUSES.get(message.log_status, "unknown"),
        spans=tuple(Span(span.version, span.first_token) for span in message.spans),
    )


def answer_of(message: chat_pb2.Answer) -> Answer:
    """An answer as it came."""
    return Answer(message.text, receipt_of(message.receipt), finish_of(message.finish))
