"""ImportVotes over gRPC on a real store: what is brought is there as if it had been said here, once, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from grpc import aio

from server.engine_scripted import EOS, ScriptedEngine
from server.identity import Identity, rater_secret
from thumbwheel import config
from thumbwheel.config import Config
from thumbwheel.erasure import Erasure
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.store import Store
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, import_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb
from thumbwheel_client.v1.import_pb2 import (
    IMPORT_STATUS_KEPT,
    IMPORT_STATUS_KNOWN,
    IMPORT_STATUS_REFUSED,
    ImportedAnswer,
    ImportedRanks,
    ImportedVote,
    ImportResult,
    ImportVotesRequest,
)

KEPT, KNOWN, REFUSED = IMPORT_STATUS_KEPT, IMPORT_STATUS_KNOWN, IMPORT_STATUS_REFUSED
OPERATOR = (("x-thumbwheel-user", "operator"),)
CONTEXT = 400
WHEN = datetime(2024, 3, 1, tzinfo=UTC)


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any) -> AsyncIterator[Any]:
    async with run_server(settings(), ScriptedEngine(max_context=CONTEXT)) as server:
        yield server


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    store = await Store.open(redis_url, "default")
    yield store
    await store.close()


@pytest.fixture
def rater(settings: Callable[..., Config], server: Any) -> Callable[[str], str]:
    return Identity(rater_secret(settings().data_dir / "secrets")).rater


def vote(*answers: str, prompt: str = "What turns?", **facts: Any) -> ImportedVote:
    """A thumb up by ada on the first answer, unless it says otherwise."""
    if not facts.keys() & {"thumb", "stars", "ranks", "edit"}:
        facts["thumb"] = pb.THUMB_UP
    if "rater" not in facts:
        facts.setdefault("user", "ada")
    texts = [ImportedAnswer(index=index, text=text) for index, text in enumerate(answers or ("The wheel.",))]
    message = pb.Message(role=pb.ROLE_USER, content=prompt)
    return ImportedVote(messages=[message], answers=texts, **facts)


async def bring(server: Any, *votes: ImportedVote, dry_run: bool = False) -> list[ImportResult]:
    stub = import_pb2_grpc.ImportServiceStub(server.admin)
    return list((await stub.ImportVotes(ImportVotesRequest(votes=votes, dry_run=dry_run), metadata=OPERATOR)).results)


async def statuses(server: Any, *votes: ImportedVote, dry_run: bool = False) -> list[int]:
    return [result.status for result in await bring(server, *votes, dry_run=dry_run)]


async def everything(server: Any) -> list[feedback_pb2.Vote]:
    request = feedback_pb2.ListVotesRequest(all_raters=True, include_turns=True)
    return list((await server.feedback.ListVotes(request, metadata=OPERATOR)).votes)


async def turn_of(store: Store, turn_id: str) -> Turn:
    return await TurnLog(store, config.TurnLog()).get(turn_id)


async def test_every_kind_is_there_as_if_it_had_been_said_here(
    server: Any, store: Store, rater: Callable[[str], str]
) -> None:
    results = await bring(
        server,
        vote(reasons=["short"], comment="nice", rated_at=WHEN, answered_at=WHEN - timedelta(minutes=1)),
        vote(prompt="stars?", stars=2),
        vote("A", "B", "C", prompt="ranks?", ranks=ImportedRanks(ranks=[2, 1, 2])),
        vote(prompt="edit?", edit="Better."),
    )
    assert [(result.status, result.reason) for result in results] == [(KEPT, "")] * 4
    found = {each.event.kind: each for each in await everything(server)}
    assert {each.event.rater for each in found.values()} == {rater("ada")}
    assert all(each.event.imported for each in found.values())
    thumb = found[pb.VOTE_KIND_THUMB]
    assert (thumb.event.thumb, list(thumb.event.reasons), thumb.event.comment) == (pb.THUMB_UP, ["short"], "nice")
    assert thumb.event.created_at.ToDatetime(UTC) == WHEN
    assert thumb.answered_at.ToDatetime(UTC) == WHEN - timedelta(minutes=1)
    assert [message.content for message in thumb.messages] == ["What turns?"]
    assert found[pb.VOTE_KIND_STARS].event.stars == 2
    assert found[pb.VOTE_KIND_EDIT].event.edit == "Better."
    ranked = found[pb.VOTE_KIND_RANKING]
    assert [(item.response_id[-2:], item.rank) for item in ranked.event.ranking.items] == [
        ("-0", 2),
        ("-1", 1),
        ("-2", 2),
    ]
    assert [answer.text for answer in ranked.responses] == ["A", "B", "C"]

    # All that the reward model needs, and nothing from which a policy could learn that it did not say.
    turn = await turn_of(store, thumb.event.turn_id)
    assert turn.record.prompt_token_ids == list(b"<user>What turns?\n<assistant>")
    assert turn.record.owner == rater("ada")
    assert turn.record.sampling.max_tokens > 0
    [answer] = turn.responses.values()
    assert answer.token_ids == [*b"The wheel.", EOS]
    assert answer.finish_reason == pb.FINISH_REASON_STOP
    assert not answer.spans
    assert not answer.logprobs
    assert await VoteStream(store).waiting() == 4


async def test_the_same_again_changes_nothing(server: Any, store: Store) -> None:
    votes = [
        vote(),
        vote("A", "B", ranks=ImportedRanks(ranks=[1, 2])),
        vote("timed", rated_at=WHEN),
        vote("liked and not", thumb=pb.THUMB_UP),
        vote("liked and not", thumb=pb.THUMB_DOWN),
    ]
    assert await statuses(server, *votes) == [KEPT] * 5
    before = await everything(server)
    assert len(before) == 5
    # Long after every idempotency key has lapsed.
    stale = [key async for key in _keys(store, "*:idempotency:*")]
    assert stale
    await store.call("DEL", *stale)
    assert await statuses(server, *votes) == [KNOWN] * 5
    assert await everything(server) == before
    assert await VoteStream(store).waiting() == 5


async def _keys(store: Store, pattern: str) -> AsyncIterator[bytes]:
    for key in await store.call("KEYS", pattern):
        yield key


async def test_two_who_bring_the_same_at_once_bring_it_once(server: Any, store: Store) -> None:
    votes = [vote(f"answer {number}") for number in range(20)]
    both = await asyncio.gather(statuses(server, *votes), statuses(server, *votes))
    assert sorted(both[0] + both[1]) == [KEPT] * 20 + [KNOWN] * 20
    assert await VoteStream(store).waiting() == 20
    assert await statuses(server, vote("twice"), vote("twice")) in ([KEPT, KNOWN], [KNOWN, KEPT])


async def test_the_newest_word_stays(server: Any) -> None:
    def said(thumb: pb.Thumb, hours: int) -> ImportedVote:
        return vote(thumb=thumb, rated_at=WHEN + timedelta(hours=hours))

    assert await statuses(server, said(pb.THUMB_UP, 1)) == [KEPT]
    assert await statuses(server, said(pb.THUMB_DOWN, 0)) == [KNOWN]
    assert [each.event.thumb for each in await everything(server)] == [pb.THUMB_UP]
    # In one call too, and whichever comes first there; and back to what it was before.
    assert await statuses(server, said(pb.THUMB_UP, 3), said(pb.THUMB_DOWN, 2)) == [KNOWN, KNOWN]
    assert await statuses(server, said(pb.THUMB_DOWN, 5), said(pb.THUMB_UP, 4)) == [KEPT, KNOWN]
    assert await statuses(server, said(pb.THUMB_UP, 6)) == [KEPT]
    assert [each.event.thumb for each in await everything(server)] == [pb.THUMB_UP]


async def test_what_was_exported_here_comes_back_as_it_was(
    server: Any, store: Store, rater: Callable[[str], str]
) -> None:
    metadata = (("x-thumbwheel-user", "ada"),)
    message = pb.Message(role=pb.ROLE_USER, content="Hi")
    ask = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], n=2))
    answers = (await server.chat.Chat(ask, metadata=metadata)).answers
    name = answers[0].receipt.response_id
    rate = feedback_pb2.RateRequest(response_id=name, idempotency_key="k", thumb=pb.THUMB_UP)
    await server.feedback.Rate(rate, metadata=metadata)
    [kept] = await everything(server)

    def row(**facts: Any) -> ImportedVote:
        return vote(answers[0].text, prompt="Hi", turn_id=kept.event.turn_id, rater=rater("ada"), **facts)

    again = row(thumb=pb.THUMB_UP, rated_at=kept.event.created_at)
    assert await statuses(server, again) == [KNOWN]
    assert await everything(server) == [kept]
    before = await turn_of(store, kept.event.turn_id)
    # Another vote on it finds the turn, whose record stays the one that can train.
    assert await statuses(server, row(stars=5)) == [KEPT]
    assert await turn_of(store, kept.event.turn_id) == before
    # To what was erased since, an old export adds nothing.
    await Erasure(store).erase(rater("ada"))
    [refused] = await bring(server, again)
    assert (refused.status, refused.reason) == (REFUSED, "the rater was erased after this")
    assert await everything(server) == []
    assert not await store.call("EXISTS", store.keys.turn(kept.event.turn_id))


async def test_answers_of_one_turn_may_come_one_by_one(server: Any, store: Store) -> None:
    first = vote("A", turn_id="t1", rated_at=WHEN)
    both = vote("A", "B", turn_id="t1", ranks=ImportedRanks(ranks=[2, 1]), rated_at=WHEN)
    assert await statuses(server, first) == [KEPT]
    assert await statuses(server, both) == [KEPT]
    assert [answer.text for answer in (await turn_of(store, "t1")).responses.values()] == ["A", "B"]


async def test_who_is_erased_stays_so(server: Any, store: Store, rater: Callable[[str], str]) -> None:
    assert await statuses(server, vote(rated_at=WHEN)) == [KEPT]
    erased = await Erasure(store).erase(rater("ada"))
    assert (erased.turns, erased.votes) == (1, 1)
    mine = vote()
    mine.ClearField("user")
    later = vote("later", rated_at=datetime.now(UTC) + timedelta(seconds=1))
    votes = [vote(rated_at=WHEN), vote("no time"), later, mine]
    for dry_run in (True, False):
        found = await bring(server, *votes, dry_run=dry_run)
        assert [result.status for result in found] == [REFUSED, REFUSED, KEPT, KEPT]
        assert found[0].reason == "the rater was erased after this"


async def test_a_dry_run_only_says_so(server: Any, store: Store) -> None:
    assert await statuses(server, vote("kept", rated_at=WHEN)) == [KEPT]
    before = set(await store.call("KEYS", "*"))
    votes = [vote("kept", rated_at=WHEN), vote("new"), vote("new", stars=9)]
    assert await statuses(server, *votes, dry_run=True) == [KNOWN, KEPT, REFUSED]
    assert set(await store.call("KEYS", "*")) == before


async def test_nobody_named_is_who_imports(server: Any, rater: Callable[[str], str]) -> None:
    mine = vote()
    mine.ClearField("user")
    assert await statuses(server, mine) == [KEPT]
    [kept] = await everything(server)
    assert kept.event.rater == rater("operator")


SYSTEM_LATE = [pb.Message(role=pb.ROLE_USER, content="a"), pb.Message(role=pb.ROLE_SYSTEM, content="b")]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (ImportedVote(user="ada", thumb=pb.THUMB_UP), "messages: none"),
        (ImportedVote(messages=SYSTEM_LATE, thumb=pb.THUMB_UP), "messages[1].role: "),
        (vote(prompt="x" * CONTEXT), "messages: "),
        (vote(" "), "answers[0].text: empty"),
        (vote("a", "x" * CONTEXT, ranks=ImportedRanks(ranks=[1, 2])), "answers[1].text: the model's context"),
        (vote(*"abcdefghi"), "answers: 9; must be 1 to 8"),
        (vote("a", "b", ranks=ImportedRanks(ranks=[1])), "ranks: 1 for 2 answers"),
        (vote("a", ranks=ImportedRanks(ranks=[1])), "ranking.items: 1 answers"),
        (vote("a", "b", ranks=ImportedRanks(ranks=[0, 1])), "ranking.items[0].rank: 0"),
        (vote(stars=6), "stars: 6"),
        (vote(thumb=3), "thumb: "),
        (vote(edit=" "), "edit: empty"),
        (vote(comment="x" * 2001), "comment: 2001 characters"),
        (vote(reasons=["x" * 65]), "reasons[0]: 65 characters"),
        (vote(user=""), "user: "),
        (vote(user="a\n"), "user: "),
        (vote(rater="ada"), "rater: must be 32 hex digits"),
        (vote(turn_id="t-1"), "turn_id: "),
        (vote(turn_id="t" * 61), "turn_id: "),
        (vote(rated_at=datetime(2100, 1, 1, tzinfo=UTC)), "rated_at: "),
        (vote(answered_at=datetime(1960, 1, 1, tzinfo=UTC)), "answered_at: "),
    ],
)
async def test_a_wrong_one_is_refused_and_the_others_are_not(server: Any, wrong: ImportedVote, reason: str) -> None:
    before, refused, after = await bring(server, vote("before"), wrong, vote("after"))
    assert (before.status, after.status) == (KEPT, KEPT)
    assert refused.status == REFUSED
    assert refused.reason.startswith(reason), refused.reason
    assert len(await everything(server)) == 2


async def test_a_vote_without_an_opinion_and_answers_of_one_index(server: Any) -> None:
    silent = vote()
    silent.ClearField("vote")
    doubled = vote("a", "b", ranks=ImportedRanks(ranks=[1, 2]))
    doubled.answers[1].index = 0
    beyond = vote("a")
    beyond.answers[0].index = 8
    found = await bring(server, silent, doubled, beyond)
    assert [result.reason.partition(":")[0] for result in found] == ["vote", "answers", "answers[0].index"]


async def test_a_turn_is_one_raters_and_says_one_thing(server: Any) -> None:
    for first in (False, True):  # in one call, and in two
        turn_id = f"t{first}"
        mine = vote("A", turn_id=turn_id)
        others = [vote("A", turn_id=turn_id, user="bob"), vote("B", turn_id=turn_id, stars=3)]
        found = (
            await bring(server, mine, *others) if first else [*await bring(server, mine), *await bring(server, *others)]
        )
        assert [result.status for result in found] == [KEPT, REFUSED, REFUSED]
        assert found[1].reason == "another rater's turn has this turn_id"
        assert found[2].reason == "answer 0 of this turn_id says something else here"


async def test_so_many_at_once_and_no_more(server: Any) -> None:
    for votes in ([], [vote()] * 101):
        with pytest.raises(aio.AioRpcError) as refused:
            await bring(server, *votes)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_old_conversations_stay_until_they_have_trained_and_as_long_as_new_ones(
    server: Any, store: Store
) -> None:
    old = datetime.now(UTC) - timedelta(days=400)
    assert await statuses(server, vote(rated_at=old, answered_at=old)) == [KEPT]
    assert await TurnLog(store, config.TurnLog()).trim() == 0
    assert len(await everything(server)) == 1


async def test_its_votes_are_what_the_learner_reads(server: Any, store: Store) -> None:
    assert await statuses(server, vote("A"), vote("B", thumb=pb.THUMB_DOWN)) == [KEPT, KEPT]
    feedback = FeedbackLog(store, config.Feedback())
    names = [name async for name in feedback.rated_turns(10)]
    current = await feedback.current(names)
    assert sorted(event.thumb for votes in current.values() for _, event in votes) == [pb.THUMB_UP, pb.THUMB_DOWN]
