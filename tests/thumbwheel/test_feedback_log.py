from __future__ import annotations

import asyncio
from typing import Any

import pytest

from thumbwheel import config
from thumbwheel.errors import Conflict, InvalidInput, NotAllowed, NotFound, StoreUnavailable
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.records import now, response_id
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb


async def stream_length(store: Store) -> int:
    return int(await store.call("XLEN", store.keys.votes))


async def test_a_vote_is_in_the_stream_and_current(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    vote = make.thumb("t1")
    event_id, version = await feedback.append(vote, "key")
    assert version == "base"
    assert await stream_length(store) == 1
    assert await feedback.current(["t1", "t2"]) == {"t1": [(event_id, vote)], "t2": []}


async def test_an_answer_that_does_not_exist(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1")
    odd = make.thumb("t1")
    odd.response_id = "nonsense"
    other = make.thumb("t1")
    other.turn_id = "t2"
    for vote in [make.thumb("t2"), make.thumb("t1", 1), odd, other]:
        with pytest.raises(NotFound):
            await feedback.append(vote, "key")
    assert await stream_length(store) == 0


async def test_somebody_elses_answer(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1", owner="ann")
    with pytest.raises(NotAllowed):
        await feedback.append(make.thumb("t1", rater="bob"), "key")
    assert await stream_length(store) == 0


async def test_the_same_call_again_answers_the_same_and_counts_once(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    first = await feedback.append(make.thumb("t1"), "key")
    later = make.thumb("t1")
    later.created_at.seconds += 60
    assert await feedback.append(later, "key") == (first.event_id, None)
    await store.call("DEL", store.keys.turn("t1"))  # even when the turn has grown old meanwhile
    assert await feedback.append(later, "key") == (first.event_id, None)
    assert await stream_length(store) == 1


async def test_many_at_once_with_one_key_count_once(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    kept = await asyncio.gather(*(feedback.append(make.thumb("t1"), "key") for _ in range(40)))
    assert len({vote.event_id for vote in kept}) == 1
    assert sum(vote.version is not None for vote in kept) == 1
    assert await stream_length(store) == 1


async def test_the_same_key_with_other_content(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1", up=True), "key")
    for other in [make.thumb("t1", up=False), make.thumb("t1", retracted=True), make.thumb("t9")]:
        with pytest.raises(Conflict):
            await feedback.append(other, "key")
    assert await stream_length(store) == 1


async def test_keys_of_two_raters_do_not_meet(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1", owner="ann")
    await make.log(turns, "t2", owner="bob")
    assert await feedback.append(make.thumb("t1", rater="ann"), "key") != await feedback.append(
        make.thumb("t2", rater="bob"), "key"
    )


async def test_a_key_lapses(store: Store, turns: TurnLog, make: Any, until: Any) -> None:
    feedback = FeedbackLog(store, config.Feedback(idempotency_hours=0.05 / 3600))
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "key")

    async def lapsed() -> bool:
        return await store.call("EXISTS", store.keys.idempotency("ann", "key")) == 0

    await until(lapsed)
    await feedback.append(make.thumb("t1", up=False), "key")
    assert await stream_length(store) == 2


async def test_a_key_lives_as_long_as_configured(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "key")
    left = await store.call("PTTL", store.keys.idempotency("ann", "key"))
    assert 72 * 3_600_000 - 60_000 < left <= 72 * 3_600_000


async def test_the_latest_vote_wins(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1", up=True), "1")
    latest = make.thumb("t1", up=False)
    event_id, _ = await feedback.append(latest, "2")
    assert (await feedback.current(["t1"]))["t1"] == [(event_id, latest)]
    assert await stream_length(store) == 2


async def test_kinds_and_answers_are_votes_of_their_own(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1", answers=2)
    name = response_id("t1", 0)
    said = [
        make.thumb("t1", 0),
        make.thumb("t1", 1),
        pb.VoteEvent(turn_id="t1", response_id=name, rater="ann", kind=pb.VOTE_KIND_STARS, stars=4),
        pb.VoteEvent(turn_id="t1", response_id=name, rater="ann", kind=pb.VOTE_KIND_EDIT, edit="better"),
        make.ranking("t1", ("t1-0", 1), ("t1-1", 1)),
    ]
    ids = [(await feedback.append(vote, f"{i}")).event_id for i, vote in enumerate(said)]
    assert (await feedback.current(["t1"]))["t1"] == list(zip(ids, said, strict=True))


async def test_a_vote_can_be_taken_back(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "1")
    back = make.thumb("t1", retracted=True)
    kept = await feedback.append(back, "2")
    assert await feedback.append(back, "2") == (kept.event_id, None)
    assert (await feedback.current(["t1"]))["t1"] == []
    assert await feedback.page(size=10) == ([], "")
    assert [name async for name in feedback.rated_turns(10)] == []
    assert [turn.record.turn_id async for turn in turns.recent(10)] == ["t1"]
    assert await stream_length(store) == 2  # the learner hears of both
    with pytest.raises(NotFound, match="no such vote"):
        await feedback.append(make.thumb("t1", retracted=True), "3")
    assert await stream_length(store) == 2
    await feedback.append(make.thumb("t1"), "4")
    assert len((await feedback.current(["t1"]))["t1"]) == 1


async def test_taking_one_vote_back_leaves_the_others(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1", answers=2)
    await feedback.append(make.thumb("t1", 0), "1")
    await feedback.append(make.thumb("t1", 1), "2")
    await feedback.append(make.thumb("t1", 0, retracted=True), "3")
    assert [vote.response_id for _, vote in (await feedback.current(["t1"]))["t1"]] == ["t1-1"]
    assert [name async for name in feedback.rated_turns(10)] == ["t1"]


async def test_a_ranking_across_turns(store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.log(turns, "t1", answers=2)
    await make.log(turns, "t2")
    with pytest.raises(InvalidInput, match=r"ranking\.items\[1\]\.response_id: belongs to another turn"):
        await feedback.append(make.ranking("t1", ("t1-0", 1), ("t2-0", 2)), "key")
    with pytest.raises(InvalidInput, match=r"ranking\.items\[1\]\.response_id: is ranked twice"):
        await feedback.append(make.ranking("t1", ("t1-0", 1), ("t1-0", 2)), "key")
    with pytest.raises(NotFound):
        await feedback.append(make.ranking("t1", ("t1-0", 1), ("t1-2", 2)), "key")
    assert await stream_length(store) == 0


async def test_pages_go_from_the_newest_turn_to_the_oldest(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    for i in range(7):
        owner = "bob" if i == 3 else "ann"
        await make.log(turns, f"t{i}", answers=2, owner=owner, millis=1000 + i // 2)
        for index in range(2):
            await feedback.append(make.thumb(f"t{i}", index, rater=owner), f"{i} {index}")
    seen, token = [], ""
    while True:
        votes, token = await feedback.page(size=2, token=token)
        assert len(votes) <= 4
        seen += [vote.response_id for _, vote in votes]
        if not token:
            break
    assert seen == [f"t{i}-{index}" for i in range(6, -1, -1) for index in range(2)]
    everything, _ = await feedback.page(rater="ann", size=500)
    assert [vote.response_id for _, vote in everything] == [name for name in seen if not name.startswith("t3")]
    assert len((await feedback.page(turn_id="t3", size=1))[0]) == 2
    assert await feedback.page(turn_id="t3", rater="ann", size=1) == ([], "")
    assert [name async for name in feedback.rated_turns(3)] == ["t6", "t5", "t4"]


async def test_the_last_page_that_is_just_full_has_no_next(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    await make.vote(turns, feedback, 2)
    assert (await feedback.page(size=2))[1] == ""


async def test_a_corrupt_vote_is_left_out_and_counted(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.vote(turns, feedback, 2)
    key = store.keys.current("t0")
    field, value = await store.call("HGETALL", key)
    await store.call("HSET", key, field, value[:-1] + b"?")
    found = await feedback.current(["t0", "t1"])
    assert found["t0"] == []
    assert len(found["t1"]) == 1
    assert feedback.corrupt == 1


async def test_an_absent_store_never_says_ok(own_redis: Any, own_store: Store, make: Any) -> None:
    turns, feedback = TurnLog(own_store, config.TurnLog()), FeedbackLog(own_store, config.Feedback())
    await make.log(turns, "t1")
    vote = make.thumb("t1")
    own_redis.kill()
    with pytest.raises(StoreUnavailable) as caught:
        await feedback.append(vote, "key")
    assert caught.value.retry_after > 0
    own_redis.start()
    assert await feedback.append(vote, "key")


async def test_a_full_store_keeps_nothing_and_says_so(own_redis: Any, own_store: Store, make: Any) -> None:
    turns, feedback = TurnLog(own_store, config.TurnLog()), FeedbackLog(own_store, config.Feedback())
    await make.log(turns, "t1")
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    with pytest.raises(StoreUnavailable):
        await feedback.append(make.thumb("t1"), "key")
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    assert await stream_length(own_store) == 0
    assert (await feedback.current(["t1"]))["t1"] == []
    assert await own_store.call("EXISTS", own_store.keys.idempotency("ann", "key")) == 0
    assert await feedback.append(make.thumb("t1"), "key")


async def test_a_killed_server_keeps_every_acknowledged_vote(
    own_redis: Any, own_store: Store, make: Any, until: Any
) -> None:
    """Raters go on and on, retrying as clients do, while the server is killed five times."""
    turns, feedback = TurnLog(own_store, config.TurnLog()), FeedbackLog(own_store, config.Feedback())
    acknowledged: dict[str, str] = {}
    stop = asyncio.Event()

    async def rate(number: int) -> None:
        await make.log(turns, f"t{number}")
        count = 0
        while not stop.is_set():
            key = f"{number} {count}"
            vote = make.thumb(f"t{number}", up=count % 2 == 0)
            vote.created_at.CopyFrom(now())
            try:
                acknowledged[key] = (await feedback.append(vote, key)).event_id
            except StoreUnavailable:
                await asyncio.sleep(0)
            else:
                count += 1

    raters = [asyncio.create_task(rate(number)) for number in range(8)]
    for round_ in range(1, 6):

        async def enough(least: int = 60 * round_) -> bool:
            return len(acknowledged) >= least

        await until(enough)
        own_redis.kill()
        before = own_store.failures

        async def noticed(before: int = before) -> bool:
            return own_store.failures > before

        await until(noticed)
        own_redis.start()
    stop.set()
    await asyncio.gather(*raters)

    ids = [name.decode() for name, _ in await own_store.call("XRANGE", own_store.keys.votes, "-", "+")]
    assert set(acknowledged.values()) <= set(ids)
    assert len(set(acknowledged.values())) == len(acknowledged)  # no two votes share an entry
    # Nothing twice: what is not acknowledged is at most one vote a rater that was still being retried.
    assert len(ids) - len(acknowledged) <= len(raters)
    assert await VoteStream(own_store).waiting() == len(ids)
