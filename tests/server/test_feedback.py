"""Votes over real sockets into a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import redis
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from prometheus_client import REGISTRY

from server import metrics
from server.engine_scripted import ScriptedEngine
from server.vote_input import MAX_REASONS
from thumbwheel.config import Config
from thumbwheel.errors import NotFound
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.turn_log import TurnLog
from thumbwheel_client.v1 import chat_pb2, feedback_pb2, record_pb2

THUMB, STARS = record_pb2.VOTE_KIND_THUMB, record_pb2.VOTE_KIND_STARS
RANKING, EDIT = record_pb2.VOTE_KIND_RANKING, record_pb2.VOTE_KIND_EDIT
UP, DOWN = record_pb2.THUMB_UP, record_pb2.THUMB_DOWN


def user(name: str) -> tuple[tuple[str, str], ...]:
    return (("x-thumbwheel-user", name),)


async def answers(server: Any, n: int = 1, name: str = "ada", content: str = "Hi") -> list[chat_pb2.Answer]:
    request = chat_pb2.ChatRequest(
        input=chat_pb2.ChatInput(messages=[record_pb2.Message(role=record_pb2.ROLE_USER, content=content)], n=n)
    )
    return list((await server.chat.Chat(request, metadata=user(name))).answers)


async def rate(server: Any, key: str, name: str = "ada", **fields: Any) -> str:
    request = feedback_pb2.RateRequest(idempotency_key=key, **fields)
    return str((await server.feedback.Rate(request, metadata=user(name))).event_id)


async def votes(server: Any, name: str = "ada", **fields: Any) -> list[feedback_pb2.Vote]:
    return list((await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(**fields), metadata=user(name))).votes)


async def refused(call: Any) -> aio.AioRpcError:
    with pytest.raises(aio.AioRpcError) as refusal:
        await call
    return refusal.value


async def eventually(call: Callable[[], Awaitable[str]]) -> None:
    """Repeats a vote while the store comes back, as a client would: with the same key."""
    async with asyncio.timeout(20):
        while True:
            try:
                assert await call()
                return
            except aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND):
                    raise
                await asyncio.sleep(0.05)


def order(*items: tuple[str, int]) -> record_pb2.Ranking:
    return record_pb2.Ranking(
        items=[record_pb2.RankedResponse(response_id=response_id, rank=rank) for response_id, rank in items]
    )


async def left_stream(server: Any, text: str = "Hi") -> str:
    """The response id of a stream that its caller has left after a word."""
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content=text)
    request = chat_pb2.StreamChatRequest(input=chat_pb2.ChatInput(messages=[message]))
    call = server.chat.StreamChat(request, metadata=user("ada"))
    receipt = (await call.read()).receipt
    await call.read()
    call.cancel()
    return str(receipt.response_id)


async def test_who_leaves_a_stream_may_rate_what_was_seen_at_once(
    settings: Callable[..., Config], run_server: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, refusals = asyncio.Event(), list[NotFound]()
    log, keep = TurnLog.append, FeedbackLog.append

    async def slow(self: TurnLog, *answer: Any) -> Any:
        await written.wait()
        return await log(self, *answer)

    async def seen(self: FeedbackLog, *vote: Any) -> Any:
        try:
            return await keep(self, *vote)
        except NotFound as error:
            refusals.append(error)
            raise

    monkeypatch.setattr(TurnLog, "append", slow)
    monkeypatch.setattr(FeedbackLog, "append", seen)
    engine = ScriptedEngine(script=lambda *_: "x" * 200, token_seconds=0.005)
    async with run_server(settings(), engine) as server:
        response_id = await left_stream(server)
        vote = asyncio.create_task(rate(server, "left", response_id=response_id, thumb=DOWN))
        await until(lambda: refusals and not engine.running)
        assert not vote.done()
        written.set()
        assert await vote
        [kept] = await votes(server)
        assert kept.event.response_id == response_id


async def test_a_vote_waits_only_a_moment_for_an_answer_that_goes_on(
    settings: Callable[..., Config], run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.votes.WRITTEN_SECONDS", 0.05)
    engine = ScriptedEngine(script=lambda *_: "x" * 200)
    message = record_pb2.Message(role=record_pb2.ROLE_USER, content="Hi")
    async with run_server(settings(), engine) as server:
        engine.resume.clear()
        request = chat_pb2.StreamChatRequest(input=chat_pb2.ChatInput(messages=[message]))
        call = server.chat.StreamChat(request, metadata=user("ada"))
        receipt = (await call.read()).receipt
        refusal = await refused(rate(server, "early", response_id=receipt.response_id, thumb=UP))
        assert refusal.code() is grpc.StatusCode.NOT_FOUND
        engine.resume.set()
        while await call.read() is not aio.EOF:
            pass
        assert await rate(server, "early", response_id=receipt.response_id, thumb=UP)


async def test_four_kinds_of_votes_are_kept_and_listed(server: Any) -> None:
    first, second = await answers(server, n=2)
    rid, turn_id = first.receipt.response_id, first.receipt.turn_id
    ranking = order((rid, 2), (second.receipt.response_id, 1))
    await rate(server, "k1", response_id=rid, thumb=UP, reasons=["kind"], comment="nice")
    await rate(server, "k2", response_id=rid, stars=4)
    await rate(server, "k3", ranking=ranking)
    await rate(server, "k4", response_id=rid, edit="Better.")
    found = {vote.event.kind: vote for vote in await votes(server)}
    assert set(found) == {THUMB, STARS, RANKING, EDIT}
    assert found[THUMB].event.thumb == UP
    assert list(found[THUMB].event.reasons) == ["kind"]
    assert found[THUMB].event.comment == "nice"
    assert found[STARS].event.stars == 4
    assert found[RANKING].event.ranking == ranking
    assert found[RANKING].event.response_id == ""
    assert found[EDIT].event.edit == "Better."
    assert {vote.event.turn_id for vote in found.values()} == {turn_id}
    assert all(vote.HasField("answered_at") and not vote.messages for vote in found.values())

    [with_turn] = [v for v in await votes(server, turn_id=turn_id, include_turns=True) if v.event.kind == RANKING]
    assert [message.content for message in with_turn.messages] == ["Hi"]
    assert [response.text for response in with_turn.responses] == [first.text, second.text]


async def test_the_first_page_tells_how_much_there_is(server: Any) -> None:
    for number, name in enumerate(("ada", "ada", "bob")):
        [answer] = await answers(server, name=name)
        await rate(server, str(number), name, response_id=answer.receipt.response_id, thumb=UP)
    first = feedback_pb2.ListVotesRequest(all_raters=True, page_size=2)
    page = await server.feedback.ListVotes(first, metadata=user("ada"))
    assert (len(page.votes), page.total_turns) == (2, 3)
    second = feedback_pb2.ListVotesRequest(all_raters=True, page_size=2, page_token=page.next_page_token)
    page = await server.feedback.ListVotes(second, metadata=user("ada"))
    assert (len(page.votes), page.total_turns) == (1, 0)
    mine = await server.feedback.ListVotes(feedback_pb2.ListVotesRequest(), metadata=user("ada"))
    assert mine.total_turns == 2


async def test_a_repeated_call_answers_as_before_and_counts_once(server: Any) -> None:
    rid = (await answers(server))[0].receipt.response_id
    event_id = await rate(server, "same", response_id=rid, thumb=UP)
    assert await rate(server, "same", response_id=rid, thumb=UP) == event_id
    other = await refused(rate(server, "same", response_id=rid, thumb=DOWN))
    assert other.code() is grpc.StatusCode.ALREADY_EXISTS
    [vote] = await votes(server)
    assert vote.event_id == event_id


async def test_a_vote_can_be_changed_and_taken_back(server: Any) -> None:
    rid = (await answers(server))[0].receipt.response_id
    await rate(server, "1", response_id=rid, thumb=UP)
    await rate(server, "2", response_id=rid, thumb=DOWN)
    [vote] = await votes(server)
    assert vote.event.thumb == DOWN
    request = feedback_pb2.RetractRequest(response_id=rid, kind=THUMB, idempotency_key="3")
    event_id = (await server.feedback.Retract(request, metadata=user("ada"))).event_id
    assert await votes(server) == []
    assert (await server.feedback.Retract(request, metadata=user("ada"))).event_id == event_id


async def test_a_ranking_can_be_taken_back(server: Any) -> None:
    one, two = await answers(server, n=2)
    await rate(server, "1", ranking=order((one.receipt.response_id, 1), (two.receipt.response_id, 1)))
    request = feedback_pb2.RetractRequest(turn_id=one.receipt.turn_id, kind=RANKING, idempotency_key="2")
    await server.feedback.Retract(request, metadata=user("ada"))
    assert await votes(server) == []


async def test_only_who_asked_may_rate(server: Any) -> None:
    rid = (await answers(server, name="ada"))[0].receipt.response_id
    error = await refused(rate(server, "k", name="bob", response_id=rid, thumb=UP))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_everybodys_votes_are_for_those_who_ask_for_them(server: Any) -> None:
    for name in ("ada", "bob"):
        rid = (await answers(server, name=name))[0].receipt.response_id
        await rate(server, "k", name=name, response_id=rid, thumb=UP)
    assert len(await votes(server, name="ada")) == 1
    raters = {vote.event.rater for vote in await votes(server, name="carol", all_raters=True)}
    assert len(raters) == 2
    assert not raters & {"ada", "bob"}


@pytest.mark.parametrize("rid", ["t0-0", "nonsense", "t0-9"])
async def test_an_unknown_answer_is_not_found(server: Any, rid: str) -> None:
    error = await refused(rate(server, "k", response_id=rid, thumb=UP))
    assert error.code() is grpc.StatusCode.NOT_FOUND


BAD_VOTES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("vote", {"response_id": "t1-0"}),
    "thumb unset": ("thumb", {"response_id": "t1-0", "thumb": 0}),
    "thumb odd": ("thumb", {"response_id": "t1-0", "thumb": 3}),
    "no stars": ("stars", {"response_id": "t1-0", "stars": 0}),
    "six stars": ("stars", {"response_id": "t1-0", "stars": 6}),
    "empty edit": ("edit", {"response_id": "t1-0", "edit": " "}),
    "long edit": ("edit", {"response_id": "t1-0", "edit": "x" * 20_001}),
    "no answer": ("response_id", {"thumb": UP}),
    "one ranked": ("ranking.items", {"ranking": order(("t1-0", 1))}),
    "ranked twice": ("ranking.items", {"ranking": order(("t1-0", 1), ("t1-0", 2))}),
    "rank 0": ("ranking.items[1].rank", {"ranking": order(("t1-0", 1), ("t1-1", 0))}),
    "two turns": ("ranking.items[1].response_id", {"ranking": order(("t1-0", 1), ("t2-1", 2))}),
    "ranking and answer": ("response_id", {"response_id": "t1-0", "ranking": order(("t1-0", 1), ("t1-1", 2))}),
    "no key": ("idempotency_key", {"response_id": "t1-0", "thumb": UP, "key": ""}),
    "long key": ("idempotency_key", {"response_id": "t1-0", "thumb": UP, "key": "k" * 129}),
    "reasons": ("reasons", {"response_id": "t1-0", "thumb": UP, "reasons": ["r"] * (MAX_REASONS + 1)}),
    "long reason": ("reasons[1]", {"response_id": "t1-0", "thumb": UP, "reasons": ["r", "r" * 65]}),
    "long comment": ("comment", {"response_id": "t1-0", "thumb": UP, "comment": "c" * 2001}),
}


def field_of(error: aio.AioRpcError) -> str:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    bad = error_details_pb2.BadRequest()
    assert (
        status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"]).details[0].Unpack(bad)
    )
    return str(bad.field_violations[0].field)


async def test_bad_votes_are_refused_with_their_field(server: Any) -> None:
    for name, (field, fields) in BAD_VOTES.items():
        key = fields.get("key", "k")
        error = await refused(rate(server, key, **{k: v for k, v in fields.items() if k != "key"}))
        assert field_of(error) == field, name


async def test_bad_retractions_are_refused_with_their_field(server: Any) -> None:
    bad = {
        "kind": feedback_pb2.RetractRequest(response_id="t1-0", idempotency_key="k"),
        "response_id": feedback_pb2.RetractRequest(response_id="t1-0", kind=RANKING, idempotency_key="k"),
        "turn_id": feedback_pb2.RetractRequest(kind=RANKING, idempotency_key="k"),
        "idempotency_key": feedback_pb2.RetractRequest(response_id="t1-0", kind=THUMB),
    }
    for field, request in bad.items():
        assert field_of(await refused(server.feedback.Retract(request))) == field
    unknown = feedback_pb2.RetractRequest(response_id="t1-0", kind=THUMB, idempotency_key="k")
    assert (await refused(server.feedback.Retract(unknown))).code() is grpc.StatusCode.NOT_FOUND


async def test_pages_hold_every_vote_once_newest_turn_first(server: Any) -> None:
    cast = []
    for number in range(5):
        rid = (await answers(server, content=f"question {number}"))[0].receipt.response_id
        await rate(server, f"k{number}", response_id=rid, thumb=UP)
        cast.append(rid)
    listed, token, pages = [], "", 0
    while True:
        page = await server.feedback.ListVotes(
            feedback_pb2.ListVotesRequest(page_size=2, page_token=token), metadata=user("ada")
        )
        listed += [vote.event.response_id for vote in page.votes]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert listed == cast[::-1]
    assert pages == 3
    for field, request in {
        "page_size": feedback_pb2.ListVotesRequest(page_size=501),
        "page_token": feedback_pb2.ListVotesRequest(page_token="nonsense"),
    }.items():
        assert field_of(await refused(server.feedback.ListVotes(request))) == field


async def test_with_the_store_away_a_vote_is_never_ok_and_chat_goes_on(
    settings: Callable[..., Config], run_server: Any, own_redis: Any
) -> None:
    config = settings().model_copy(update={"redis": settings().redis.model_copy(update={"url": own_redis.url})})
    async with run_server(config, ScriptedEngine()) as server:
        kept = (await answers(server))[0].receipt.response_id
        event_id = await rate(server, "before", response_id=kept, thumb=UP)
        own_redis.kill()
        error = await refused(rate(server, "during", response_id=kept, stars=5))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        hint = error_details_pb2.RetryInfo()
        status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        assert status.details[0].Unpack(hint)
        assert hint.retry_delay.ToTimedelta().total_seconds() > 0
        away = (await answers(server))[0]
        assert away.finish.log_status == chat_pb2.LOG_STATUS_PENDING
        own_redis.start()
        await eventually(lambda: rate(server, "during", response_id=kept, stars=5))
        await eventually(lambda: rate(server, "late", response_id=away.receipt.response_id, thumb=DOWN))
        assert await rate(server, "before", response_id=kept, thumb=UP) == event_id
        assert len(await votes(server)) == 3


async def test_a_corrupt_turn_does_not_hide_the_votes_of_others(server: Any, redis_url: str) -> None:
    for number in range(2):
        rid = (await answers(server))[0].receipt.response_id
        await rate(server, f"k{number}", response_id=rid, thumb=UP)
    client = redis.Redis.from_url(redis_url)
    [key] = [
        key for key in client.scan_iter("*") if rid.rpartition("-")[0].encode() in key and client.hexists(key, "t")
    ]
    client.hset(key, "t", b"\x01broken")
    client.close()
    listed = await votes(server, include_turns=True)
    assert len(listed) == 2
    assert sorted(vote.HasField("answered_at") for vote in listed) == [False, True]


async def test_votes_are_counted_by_kind_value_and_version(server: Any) -> None:
    def count(**labels: str) -> float:
        return REGISTRY.get_sample_value("thumbwheel_votes_total", labels) or 0

    before = count(kind="stars", value="2", version="base")
    rid = (await answers(server))[0].receipt.response_id
    for _ in range(2):  # a call that is repeated counts once
        await rate(server, "k", response_id=rid, stars=2)
    assert count(kind="stars", value="2", version="base") == before + 1


def test_vote_series_of_old_versions_are_forgotten() -> None:
    for number in range(metrics.MAX_VERSIONS + 3):
        metrics.count_vote("thumb", "up", f"v{number}")
    shown = {
        sample.labels["version"]
        for metric in metrics.VOTES.collect()
        for sample in metric.samples
        if sample.labels["version"].startswith("v")
    }
    assert "v0" not in shown
    assert f"v{metrics.MAX_VERSIONS + 2}" in shown
    assert len(metrics._voted_versions) == metrics.MAX_VERSIONS
