"""The events of a turn as pieces and answers."""

from __future__ import annotations

import pytest

from thumbwheel_client import NotReady, Piece
from thumbwheel_client.transcript import Transcript
from thumbwheel_client.v1 import chat_pb2, record_pb2
from thumbwheel_client.v1.chat_pb2 import StreamChatResponse as Event


def receipt(index: int) -> Event:
    return Event(index=index, receipt=chat_pb2.Receipt(response_id=f"t1-{index}", version="v1", turn_id="t1"))


def finish(index: int) -> Event:
    return Event(index=index, finish=chat_pb2.Finish(reason=record_pb2.FINISH_REASON_STOP))


def test_what_has_not_come_is_not_ready() -> None:
    transcript = Transcript()
    for name in ("receipt", "receipts", "finish", "answer", "answers"):
        with pytest.raises(NotReady):
            getattr(transcript, name)
    assert transcript.add(receipt(0)) is None
    assert transcript.receipt.response_id == "t1-0"
    assert transcript.add(Event(delta="Hi")) == Piece("Hi")
    for name in ("finish", "answer", "answers"):
        with pytest.raises(NotReady):
            getattr(transcript, name)
    assert transcript.add(finish(0)) is None
    assert (transcript.answer.text, transcript.finish.reason) == ("Hi", "stop")


def test_answers_interleave_and_end_one_by_one() -> None:
    transcript = Transcript()
    for event in (
        receipt(1),
        receipt(0),
        Event(index=1, delta="b"),
        Event(delta="a"),
        Event(index=1, delta="B"),
        finish(1),
    ):
        transcript.add(event)
    assert [one.response_id for one in transcript.receipts] == ["t1-0", "t1-1"]
    with pytest.raises(NotReady):
        _ = transcript.answer
    with pytest.raises(NotReady):
        _ = transcript.answers
    transcript.add(finish(0))
    assert [(one.text, one.receipt.response_id) for one in transcript.answers] == [("a", "t1-0"), ("bB", "t1-1")]


def test_an_answer_may_have_no_text() -> None:
    transcript = Transcript()
    for event in (receipt(0), finish(0)):
        transcript.add(event)
    assert transcript.answer.text == ""


def test_an_event_of_a_newer_server_is_passed_over() -> None:
    assert Transcript().add(Event(index=3)) is None
