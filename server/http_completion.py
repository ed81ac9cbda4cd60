"""What is answered, in OpenAI's shape, whole or in chunks.

`id` is the first answer's `response_id`, and every choice carries its own. `thumbwheel` says which version answered, in
which turn, and at the end whether it was logged: only then can it be rated.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from server.answers import WholeAnswer
from server.turns import Told
from thumbwheel_client.v1 import record_pb2
from thumbwheel_client.v1.chat_pb2 import LOG_STATUS_LOGGED, Finish, Receipt

FINISH_REASONS: Final = {
    record_pb2.FINISH_REASON_STOP: "stop",
    record_pb2.FINISH_REASON_LENGTH: "length",
}
NEVER: Final = -9999.0
"""OpenAI's log-probability of what could not have been sampled; JSON has no infinity."""

Logprobs = Callable[[Sequence[int], Sequence[float]], dict[str, Any] | None]
"""(tokens, log-probabilities in nats) -> `logprobs` of a choice."""


def no_logprobs(token_ids: Sequence[int], logprobs: Sequence[float]) -> None:
    """For who has not asked for them."""


def logprobs_by(decode: Callable[[Sequence[int]], str], ends: frozenset[int]) -> Logprobs:
    """
    Args:
        decode: text of tokens.
        ends: tokens that end an answer, which are no text and are left out.
    """

    def content(token_ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any] | None:
        listed = [
            _token(decode([token]), logprob)
            for token, logprob in zip(token_ids, logprobs, strict=True)
            if token not in ends
        ]
        return {"content": listed, "refusal": None} if listed else None

    return content


def _token(text: str, logprob: float) -> dict[str, Any]:
    # A token may be part of a character. Which part its text does not tell, and OpenAI allows to say so.
    whole = "�" not in text
    data = list(text.encode()) if whole else None
    return {"token": text, "logprob": max(logprob, NEVER), "bytes": data, "top_logprobs": []}


def completion(answers: Sequence[WholeAnswer], logprobs: Logprobs) -> dict[str, Any]:
    """A whole response."""
    first = answers[0].receipt
    logged = all(answer.finish.log_status == LOG_STATUS_LOGGED for answer in answers)
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": logprobs(answer.token_ids, answer.logprobs),
            "finish_reason": FINISH_REASONS[answer.finish.reason],
            "response_id": answer.receipt.response_id,
            **_spans(answer.finish),
        }
        for index, answer in enumerate(answers)
    ]
    return _head(first, "chat.completion", int(time.time())) | {
        "choices": choices,
        "usage": _usage([answer.finish for answer in answers]),
        "thumbwheel": _receipt(first) | {"logged": logged},
    }


async def completion_chunks(
    first: Told, turn: AsyncGenerator[Told, None], logprobs: Logprobs, *, include_usage: bool
) -> AsyncGenerator[dict[str, Any], None]:
    """A response as it is sampled; closing it closes the turn.

    Args:
        first: what the turn began with.
        include_usage: of all answers, in a last chunk without a choice.
    """
    receipts: dict[int, Receipt] = {}
    finishes: list[Finish] = []
    head = _head(first.event.receipt, "chat.completion.chunk", int(time.time()))
    more: dict[str, Any] = {"usage": None} if include_usage else {}
    told = first
    async with aclosing(turn):
        while True:
            event, index = told.event, told.event.index
            delta: dict[str, Any] = {}
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
            ours: dict[str, Any] = {}
            match event.WhichOneof("event"):
                case "receipt":
                    receipts[index] = event.receipt
                    delta |= {"role": "assistant", "content": "", "refusal": None}
                    ours = {"thumbwheel": _receipt(event.receipt)}
                case "delta":
                    delta["content"] = event.delta
                case _:
                    finishes.append(event.finish)
                    choice |= {"finish_reason": FINISH_REASONS[event.finish.reason], **_spans(event.finish)}
                    logged = event.finish.log_status == LOG_STATUS_LOGGED
                    ours = {"thumbwheel": _receipt(receipts[index]) | {"logged": logged}}
            choice["logprobs"] = logprobs(told.token_ids, told.logprobs)
            choice["response_id"] = receipts[index].response_id
            yield head | {"choices": [choice]} | more | ours
            following = await anext(turn, None)
            if following is None:
                break
            told = following
    if include_usage:
        yield head | {"choices": [], "usage": _usage(finishes)}


def _head(first: Receipt, kind: str, created: int) -> dict[str, Any]:
    return {"id": first.response_id, "object": kind, "created": created, "model": first.version}


def _receipt(receipt: Receipt) -> dict[str, Any]:
    return {"version": receipt.version, "turn_id": receipt.turn_id}


def _spans(finish: Finish) -> dict[str, Any]:
    """Which version sampled which tokens, where that is not one alone."""
    if not finish.spans:
        return {}
    return {"spans": [{"version": span.version, "first_token": span.first_token} for span in finish.spans]}


def _usage(finishes: Sequence[Finish]) -> dict[str, int]:
    """Of all answers; the prompt is read once."""
    prompt = finishes[0].usage.prompt_tokens
    sampled = sum(finish.usage.completion_tokens for finish in finishes)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}
