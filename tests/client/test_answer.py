"""Answers as they come."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import get_args

import pytest

from thumbwheel_client import Answer, Finish, FinishReason, LogStatus, Receipt, Span, Usage
from thumbwheel_client.answer import answer_of, finish_of
from thumbwheel_client.v1 import chat_pb2, record_pb2


def test_an_answer_is_what_came() -> None:
    answer = answer_of(
        chat_pb2.Answer(
            text="Hi",
            receipt=chat_pb2.Receipt(response_id="t1-0", version="v1", turn_id="t1"),
            finish=chat_pb2.Finish(
                reason=record_pb2.FINISH_REASON_LENGTH,
                usage=chat_pb2.Usage(prompt_tokens=3, completion_tokens=2),
                log_status=chat_pb2.LOG_STATUS_PENDING,
                spans=[record_pb2.VersionSpan(version="v1"), record_pb2.VersionSpan(version="v2", first_token=1)],
            ),
        )
    )
    finish = Finish("length", Usage(3, 2), "pending", (Span("v1", 0), Span("v2", 1)))
    assert answer == Answer("Hi", Receipt("t1-0", "v1", "t1"), finish)
    assert len({answer, answer}) == 1
    with pytest.raises(FrozenInstanceError):
        answer.text = "Ho"  # type: ignore[misc]


def test_every_word_of_the_api_has_its_own_and_a_newer_servers_is_unknown() -> None:
    reasons = [finish_of(chat_pb2.Finish(reason=value)).reason for value in record_pb2.FinishReason.values()]
    assert reasons == ["unknown", "stop", "length", "cancelled"]
    assert set(reasons) == set(get_args(FinishReason))
    statuses = [finish_of(chat_pb2.Finish(log_status=value)).log_status for value in chat_pb2.LogStatus.values()]
    assert statuses == ["unknown", "logged", "pending", "not_logged"]
    assert set(statuses) == set(get_args(LogStatus))
    newer = chat_pb2.Finish(reason=99, log_status=99)  # type: ignore[arg-type]
    assert (finish_of(newer).reason, finish_of(newer).log_status) == ("unknown", "unknown")
