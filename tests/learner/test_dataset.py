"""Votes of four kinds become labels and pairs; splits hold whole conversations."""

from __future__ import annotations

import pytest

from learner.dataset import Dataset, fold, held_out, opening
from thumbwheel.turn_log import Turn
from thumbwheel_client.v1 import record_pb2 as pb


def turn(answers: int = 3, temperature: float = 1.0, finish: pb.FinishReason = pb.FINISH_REASON_STOP) -> Turn:
    record = pb.TurnRecord(
        turn_id="t1",
        owner="o",
        messages=[pb.Message(role=pb.ROLE_USER, content="Why is the sky blue?")],
        prompt_token_ids=[1, 2, 3],
        sampling=pb.Sampling(max_tokens=48, temperature=temperature, top_p=1.0),
    )
    responses = {
        i: pb.ResponseRecord(
            response_id=f"t1-{i}",
            index=i,
            text="x",
            token_ids=[10 + i, 2],
            logprobs=[-0.5, -0.1],
            finish_reason=finish,
            spans=[pb.VersionSpan(version="base")],
        )
        for i in range(answers)
    }
    return Turn(record, responses)


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text] + [2]


def add(*votes: pb.VoteEvent, of: Turn | None = None) -> Dataset:
    data = Dataset()
    data.add_turn(of or turn(), [(f"{i}-0", vote) for i, vote in enumerate(votes)], encode)
    return data


def thumb(index: int, value: pb.Thumb, rater: str = "a") -> pb.VoteEvent:
    return pb.VoteEvent(turn_id="t1", response_id=f"t1-{index}", rater=rater, kind=pb.VOTE_KIND_THUMB, thumb=value)


def ranking(*ranks: int) -> pb.VoteEvent:
    items = [pb.RankedResponse(response_id=f"t1-{i}", rank=rank) for i, rank in enumerate(ranks)]
    return pb.VoteEvent(turn_id="t1", rater="a", kind=pb.VOTE_KIND_RANKING, ranking=pb.Ranking(items=items))


def test_thumbs_and_stars_are_labels() -> None:
    stars = pb.VoteEvent(turn_id="t1", response_id="t1-1", rater="b", kind=pb.VOTE_KIND_STARS, stars=4)
    data = add(thumb(0, pb.THUMB_UP), thumb(0, pb.THUMB_DOWN, "c"), stars)
    assert [(label.answer, label.value) for label in data.labels] == [(0, 1.0), (0, 0.0), (1, 0.75)]
    assert data.own_votes() == {0: (0.0, 1.0), 1: (0.5, 1.0)}
    assert data.votes == 3


def test_votes_count_as_far_as_their_raters_do() -> None:
    data = add(thumb(0, pb.THUMB_UP), thumb(0, pb.THUMB_DOWN, "c"), thumb(1, pb.THUMB_UP, "nobody"))
    data.weights = {"c": 0.25, "nobody": 0.0}
    assert data.own_votes() == {0: (pytest.approx(0.6), pytest.approx(0.625)), 1: (0.0, 0.0)}
    assert data.votes == pytest.approx(1.25)
    assert data.part(lambda answer: True).weights == data.weights


def test_a_ranking_counts_once_and_ties_make_no_pair() -> None:
    data = add(ranking(2, 1, 2))
    keys = [answer.key for answer in data.answers]
    assert {(keys[pair.better], keys[pair.worse]) for pair in data.pairs} == {("t1-1", "t1-0"), ("t1-1", "t1-2")}
    assert data.votes == pytest.approx(1)
    values = {keys[index]: value for index, (value, _) in data.own_votes().items()}
    assert values == {"t1-1": 1.0, "t1-0": -1.0, "t1-2": -1.0}


def test_the_middle_of_a_ranking_is_neutral() -> None:
    data = add(ranking(1, 2, 3))
    assert {data.answers[i].key: v for i, (v, _) in data.own_votes().items()} == {"t1-0": 1, "t1-1": 0, "t1-2": -1}


def test_an_edit_is_better_than_what_it_mends_and_never_trains_as_a_sample() -> None:
    edit = pb.VoteEvent(turn_id="t1", response_id="t1-0", rater="a", kind=pb.VOTE_KIND_EDIT, edit="ok")
    data = add(edit)
    (pair,) = data.pairs
    assert data.answers[pair.worse].key == "t1-0"
    assert data.answers[pair.better].answer_ids == (ord("o"), ord("k"), 2)
    assert pair.edit
    assert not data.answers[pair.better].trainable
    assert data.answers[pair.better].conversation == data.answers[pair.worse].conversation


def test_votes_on_answers_that_are_gone_are_left_out() -> None:
    data = add(thumb(7, pb.THUMB_UP))
    assert not data.labels
    assert not data.answers


@pytest.mark.parametrize(
    ("changes", "trainable"),
    [
        ({}, True),
        ({"temperature": 0.7}, False),
        ({"finish": pb.FINISH_REASON_LENGTH}, True),
        ({"finish": pb.FINISH_REASON_CANCELLED}, False),
    ],
)
def test_only_whole_answers_of_the_policy_itself_are_samples(changes: dict[str, object], trainable: bool) -> None:
    data = add(thumb(0, pb.THUMB_UP), of=turn(**changes))
    assert data.answers[0].trainable is trainable


def test_an_imported_answer_has_votes_and_is_no_sample() -> None:
    """As `server.intake` leaves it: tokens, and nothing of how likely they were."""
    brought = turn()
    for response in brought.responses.values():
        del response.logprobs[:]
        del response.spans[:]
    data = add(thumb(0, pb.THUMB_UP), ranking(2, 1, 2), of=brought)
    assert (len(data.labels), len(data.pairs)) == (1, 2)
    assert not any(answer.trainable for answer in data.answers)
    assert {answer.max_tokens for answer in data.answers} == {48}  # its prompt can be asked again
    assert data.answers[0].answer_ids == (10, 2)


def test_a_conversation_is_its_opening() -> None:
    system = pb.Message(role=pb.ROLE_SYSTEM, content="Be kind.")
    ask = pb.Message(role=pb.ROLE_USER, content="Hello")
    reply = pb.Message(role=pb.ROLE_ASSISTANT, content="Hi")
    more = pb.Message(role=pb.ROLE_USER, content="More")
    assert opening([ask]) == opening([ask, reply, more])
    assert opening([ask]) != opening([system, ask])
    assert opening([ask]) != opening([more])


def test_splits_have_the_asked_size_and_cut_no_conversation() -> None:
    names = [f"conversation {i}" for i in range(4000)]
    assert sum(held_out(name, 0.2) for name in names) / 4000 == pytest.approx(0.2, abs=0.02)
    assert {fold(name, 5) for name in names} == set(range(5))
    data = add(thumb(0, pb.THUMB_UP), thumb(1, pb.THUMB_DOWN))
    inside = data.part(lambda answer: answer.key == "t1-0")
    assert len(inside.labels) == 1
    assert len(inside.answers) == 2
