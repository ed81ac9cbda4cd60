from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import pytest

from thumbwheel import config
from thumbwheel.erasure import Erasure
from thumbwheel.errors import CorruptRecord, NotFound
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.store import ANSWER_SECONDS, Store
from thumbwheel.turn_log import Turn, TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb

DAY_MS = 86_400_000


async def recent(turns: TurnLog, limit: int = 100, version: str | None = None) -> list[str]:
    return [turn.record.turn_id async for turn in turns.recent(limit, version)]


async def train(store: Store) -> None:
    """A cycle over all waiting votes, committed."""
    lease = Lease(store, "learner", 60)
    assert await lease.acquire()
    batch = await VoteStream(store).freeze(lease, "cycle-1", "base", 1, 1000)
    await Registry(store).commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="rejected"), None)


async def test_a_turn_comes_back_as_it_was_logged(turns: TurnLog, make: Any) -> None:
    turn, answers = make.turn("t1"), [make.response("t1", i) for i in (2, 0)]
    for answer in answers:
        assert await turns.append(turn, answer) == chat_pb2.LOG_STATUS_LOGGED
    assert await turns.get("t1") == Turn(turn, {0: answers[1], 2: answers[0]})
    assert await turns.get_many(["no", "t1"]) == [None, await turns.get("t1")]
    assert await turns.get_many([]) == []


async def test_logging_twice_is_logging_once(turns: TurnLog, make: Any) -> None:
    await make.log(turns, "t1")
    before = await turns.get("t1")
    assert await turns.append(before.record, before.responses[0]) == chat_pb2.LOG_STATUS_LOGGED
    assert await turns.get("t1") == before
    assert await recent(turns) == ["t1"]


async def test_a_turn_from_elsewhere_comes_once_and_changes_nothing_that_is_kept(
    store: Store, turns: TurnLog, make: Any
) -> None:
    await make.log(turns, "here")
    before = await turns.get("here")
    other = make.turn("here")
    other.messages[0].content = "something else"
    changed, more = make.response("here"), make.response("here", 1)
    changed.text = "something else"
    old, its_answer = make.turn("elsewhere", millis=1000), make.response("elsewhere")
    for _ in range(2):
        assert await turns.bring([(other, [changed, more], 1000), (old, [its_answer], 1000)]) == [True, True]
        assert await turns.get("here") == Turn(before.record, before.responses | {1: more})
        assert await turns.get("elsewhere") == Turn(old, {0: its_answer})
    assert await turns.trim() == 0  # as old as its coming
    assert set(await recent(turns)) == {"elsewhere", "here"}
    assert await turns.bring([]) == []


async def test_nothing_is_brought_of_whom_was_erased_or_into_a_turn_of_others(
    store: Store, turns: TurnLog, make: Any
) -> None:
    await make.log(turns, "anns")
    await Erasure(store).erase("bob")
    now_ms = int(time.time() * 1000)
    brought = [
        (make.turn("t1", owner="bob"), [make.response("t1")], now_ms - 60_000),
        (make.turn("t2", owner="bob"), [make.response("t2")], now_ms + 60_000),
        (make.turn("anns", owner="bob"), [make.response("anns", 1)], now_ms + 60_000),
    ]
    assert await turns.bring(brought) == [False, True, True]
    assert await turns.kept(["t1", "t2"]) == {"t2"}
    assert list((await turns.get("anns")).responses) == [0]


async def test_a_turn_that_is_not_there(turns: TurnLog) -> None:
    with pytest.raises(NotFound, match="t1"):
        await turns.get("t1")


async def test_which_turns_are_still_there(turns: TurnLog, make: Any) -> None:
    for number in range(0, 250, 2):
        await make.log(turns, f"t{number}")
    asked = [f"t{number}" for number in range(250)]
    assert await turns.kept(asked) == set(asked[::2])
    assert await turns.kept([]) == set()


async def test_a_corrupt_turn(store: Store, turns: TurnLog, make: Any) -> None:
    await make.log(turns, "t1")
    await make.log(turns, "t2")
    sealed = await store.call("HGET", store.keys.turn("t1"), "r0")
    await store.call("HSET", store.keys.turn("t1"), "r0", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(CorruptRecord):
        await turns.get("t1")
    assert [turn and turn.record.turn_id for turn in await turns.get_many(["t1", "t2"])] == [None, "t2"]
    assert turns.corrupt == 1
    assert await recent(turns) == ["t2"]


async def test_recent_turns_rated_or_not_newest_first(turns: TurnLog, feedback: FeedbackLog, make: Any) -> None:
    for i in range(230):
        await make.log(turns, f"t{i:03}", millis=1000 + i // 4)
        if i % 3 == 0:
            await feedback.append(make.thumb(f"t{i:03}"), f"{i}")
    expected = [f"t{i:03}" for i in range(229, -1, -1)]
    assert await recent(turns, 1000) == expected
    assert await recent(turns, 150) == expected[:150]
    assert await recent(turns, 1) == expected[:1]
    assert await recent(turns, 0) == []


async def test_recent_turns_of_one_version(store: Store, turns: TurnLog, make: Any) -> None:
    for i in range(6):
        await make.log(turns, f"t{i}", version=f"v{i % 2}", millis=1000 + i)
    assert await recent(turns, version="v1") == ["t5", "t3", "t1"]
    assert await recent(turns, 2, "v0") == ["t4", "t2"]
    assert await recent(turns, version="v9") == []
    await store.call("DEL", store.keys.turn("t3"))  # dropped, while the version's index still has it
    assert await recent(turns, 2, "v1") == ["t5", "t1"]


async def test_a_version_is_found_by_its_latest_turns_only(
    store: Store, turns: TurnLog, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("thumbwheel.turn_log.VERSION_TURNS", 3)
    for i in range(5):
        await make.log(turns, f"t{i}", version="v1", millis=1000 + i)
    assert await recent(turns, version="v1") == ["t4", "t3", "t2"]
    left = await store.call("PTTL", store.keys.answers("v1"))
    assert 90 * DAY_MS - 60_000 < left <= 90 * DAY_MS


async def test_chat_goes_on_without_the_store(own_redis: Any, own_store: Store, make: Any) -> None:
    turns = TurnLog(own_store, config.TurnLog(buffer=3))
    runner = asyncio.create_task(turns.run())
    own_redis.kill()
    statuses = [await turns.append(make.turn(f"t{i}"), make.response(f"t{i}")) for i in range(5)]
    assert statuses == [chat_pb2.LOG_STATUS_PENDING] * 3 + [chat_pb2.LOG_STATUS_NOT_LOGGED] * 2
    assert (turns.pending, turns.lost) == (3, 2)
    assert not await turns.flush()
    waiting = asyncio.create_task(turns.written("t2"))
    assert not await turns.written("t3"), "lost, and not on its way"
    own_redis.start()
    assert await waiting
    assert turns.pending == 0
    assert await recent(turns) == ["t2", "t1", "t0"]
    assert not await turns.written("t2"), "it is there"
    assert await turns.append(make.turn("t9"), make.response("t9")) == chat_pb2.LOG_STATUS_LOGGED
    runner.cancel()
    with suppress(asyncio.CancelledError):
        await runner


async def test_a_store_that_hangs_stalls_one_answer_for_a_moment(own_redis: Any, own_store: Store, make: Any) -> None:
    turns = TurnLog(own_store, config.TurnLog())
    await make.log(turns, "t0")
    own_redis.freeze()
    started = time.monotonic()
    for i in range(1, 4):
        assert await turns.append(make.turn(f"t{i}"), make.response(f"t{i}")) == chat_pb2.LOG_STATUS_PENDING
    assert time.monotonic() - started < 2 * ANSWER_SECONDS  # the second and third did not wait
    own_redis.thaw()
    assert await turns.flush()
    assert len(await recent(turns)) == 4


async def test_a_full_store_is_an_absent_one(own_redis: Any, own_store: Store, make: Any) -> None:
    turns = TurnLog(own_store, config.TurnLog())
    own_redis.command("CONFIG", "SET", "maxmemory", "1")
    assert await turns.append(make.turn("t1"), make.response("t1")) == chat_pb2.LOG_STATUS_PENDING
    own_redis.command("CONFIG", "SET", "maxmemory", "0")
    assert await turns.flush()
    assert await recent(turns) == ["t1"]


async def test_an_answer_out_of_range_is_our_own_mistake(turns: TurnLog, make: Any) -> None:
    with pytest.raises(ValueError, match="index 8"):
        await turns.append(make.turn("t1"), make.response("t1", 8))


async def test_too_many_turns_without_a_vote(store: Store, make: Any, feedback: FeedbackLog) -> None:
    turns = TurnLog(store, config.TurnLog(max_turns=3))
    for i in range(260):
        await make.log(turns, f"t{i:03}", millis=int(time.time() * 1000) + i)
    await feedback.append(make.thumb("t000"), "key")
    assert await turns.trim() == 256
    assert await recent(turns) == ["t259", "t258", "t257", "t000"]
    assert await store.call("EXISTS", store.keys.turn("t001")) == 0
    assert await turns.trim() == 0


async def test_old_turns_go_and_their_votes_with_them(store: Store, make: Any, feedback: FeedbackLog) -> None:
    turns = TurnLog(store, config.TurnLog(max_age_days=1))
    present = int(time.time() * 1000)
    for name, age in [("old", 2), ("old rated", 2), ("new", 0), ("new rated", 0)]:
        await make.log(turns, name, millis=present - age * DAY_MS)
        if name.endswith("rated"):
            await feedback.append(make.thumb(name), name)
    await train(store)
    assert await turns.trim() == 2
    assert sorted(await recent(turns)) == ["new", "new rated"]
    assert (await feedback.current(["old rated"]))["old rated"] == []
    assert [vote.turn_id for _, vote in (await feedback.page(rater="ann", size=10))[0]] == ["new rated"]
    with pytest.raises(NotFound):
        await feedback.append(make.thumb("old rated"), "again")


async def test_old_turns_stay_until_their_votes_have_trained(store: Store, make: Any, feedback: FeedbackLog) -> None:
    turns = TurnLog(store, config.TurnLog(max_age_days=1))
    past = int(time.time() * 1000) - 2 * DAY_MS
    for i in range(150):
        await make.log(turns, f"t{i:03}", millis=past + i)
        await feedback.append(make.thumb(f"t{i:03}"), f"{i}")
    assert await turns.trim() == 0  # no learner has ever been there
    votes, lease = VoteStream(store), Lease(store, "learner", 60)
    assert await lease.acquire()
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 120)
    assert await turns.trim() == 0  # frozen, not committed
    await Registry(store).commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="rejected"), None)
    assert await turns.trim() == 120
    assert len(await recent(turns, 1000)) == 30
    # A changed vote trains anew, and its turn stays for it.
    batch = await votes.freeze(lease, "cycle-2", "base", 1, 1000)
    await Registry(store).commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="rejected"), None)
    await feedback.append(make.thumb("t149", up=False), "changed")
    assert await turns.trim() == 29
    assert await recent(turns) == ["t149"]


async def test_too_many_rated_turns_go_even_untrained(store: Store, make: Any, feedback: FeedbackLog) -> None:
    turns = TurnLog(store, config.TurnLog(max_rated_turns=2))
    await make.vote(turns, feedback, 5)
    assert await turns.trim() == 3
    assert await recent(turns) == ["t4", "t3"]


async def test_a_vote_that_comes_while_its_turn_is_dropped_wins(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    looked_at, _ = await feedback.append(make.thumb("t1"), "key")
    await feedback.append(make.thumb("t1", up=False), "changed")
    keys = store.keys
    touched = [keys.rated, keys.turn("t1"), keys.current("t1"), keys.rated_by("ann")]
    assert await store.script("drop_turn", touched, ["t1", looked_at]) == 0
    touched[0] = keys.turns  # or looked at when it had no vote yet
    assert await store.script("drop_turn", touched, ["t1", ""]) == 0
    assert await recent(turns) == ["t1"]


async def test_an_answer_that_ends_after_another_was_rated(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "key")
    await turns.append((await turns.get("t1")).record, make.response("t1", 1))
    assert await store.call("ZCARD", store.keys.turns) == 0  # it is a rated turn, and kept as one
    assert sorted((await turns.get("t1")).responses) == [0, 1]


async def test_running_drops_old_turns(store: Store, make: Any, until: Any) -> None:
    turns = TurnLog(store, config.TurnLog(max_turns=1))
    await make.log(turns, "t1")
    await make.log(turns, "t2")
    runner = asyncio.create_task(turns.run())

    async def dropped() -> bool:
        return await recent(turns) == ["t2"]

    await until(dropped)
    runner.cancel()
    with suppress(asyncio.CancelledError):
        await runner
