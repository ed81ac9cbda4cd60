"""Votes as they are sent."""

from __future__ import annotations

import pytest

from thumbwheel_client import Answer, Finish, InvalidInput, Receipt, Usage
from thumbwheel_client.v1 import feedback_pb2, record_pb2
from thumbwheel_client.vote import Rated, correction, ranking, rating, retraction

RECEIPT = Receipt("t1-0", "base", "t1")
ANSWER = Answer("Hi", RECEIPT, Finish("stop", Usage(1, 1), "logged"))


@pytest.mark.parametrize("rated", [ANSWER, RECEIPT, "t1-0"])
def test_an_answer_its_receipt_and_its_id_say_the_same(rated: Rated) -> None:
    def sent(**vote: object) -> feedback_pb2.RateRequest:
        return feedback_pb2.RateRequest(response_id="t1-0", idempotency_key="k", **vote)  # type: ignore[arg-type]

    assert rating(rated, "up", None, idempotency_key="k") == sent(thumb=record_pb2.THUMB_UP)
    assert rating(rated, "down", None, idempotency_key="k") == sent(thumb=record_pb2.THUMB_DOWN)
    assert rating(rated, None, 5, idempotency_key="k") == sent(stars=5)
    assert correction(rated, "Ho", idempotency_key="k") == sent(edit="Ho")
    assert retraction(rated, "stars", "k") == feedback_pb2.RetractRequest(
        response_id="t1-0", kind=record_pb2.VOTE_KIND_STARS, idempotency_key="k"
    )
    assert retraction(rated, "ranking", "k") == feedback_pb2.RetractRequest(
        turn_id="t1", kind=record_pb2.VOTE_KIND_RANKING, idempotency_key="k"
    )
    items = ranking([rated, ["t1-1", rated], "t1-2"]).ranking.items
    assert [(item.response_id, item.rank) for item in items] == [("t1-0", 1), ("t1-1", 2), ("t1-0", 2), ("t1-2", 3)]


def test_reasons_and_comment_go_with_every_vote() -> None:
    for vote in (
        rating(ANSWER, "up", None, reasons=["a", "b"], comment="c"),
        ranking([ANSWER, "t1-1"], reasons=("a", "b"), comment="c"),
        correction(ANSWER, "Ho", reasons=["a", "b"], comment="c"),
    ):
        assert (list(vote.reasons), vote.comment) == (["a", "b"], "c")


def test_each_vote_gets_a_key_of_its_own() -> None:
    votes = [
        rating(ANSWER, "up", None),
        rating(ANSWER, "up", None),
        ranking([ANSWER, "t1-1"]),
        correction(ANSWER, "Ho"),
    ]
    keys = {vote.idempotency_key for vote in (*votes, retraction(ANSWER, "thumb", ""))}
    assert len(keys) == 5
    assert all(8 < len(key) <= 128 for key in keys)


def test_what_is_no_vote_is_named() -> None:
    for field, vote in {
        "vote": lambda: rating(ANSWER, None, None),
        "vote ": lambda: rating(ANSWER, "up", 5),
        "vote  ": lambda: rating(ANSWER, None, -1),
        "vote   ": lambda: rating(ANSWER, "sideways", None),  # type: ignore[arg-type]
        "kind": lambda: retraction(ANSWER, "applause", "k"),  # type: ignore[arg-type]
        "reasons": lambda: rating(ANSWER, "up", None, reasons="short"),
        "edit": lambda: correction(ANSWER, "\ud800"),
        "ranking": lambda: ranking(["\ud800", "t1-1"]),
    }.items():
        with pytest.raises(InvalidInput) as refused:
            vote()
        assert refused.value.field == field.strip()
