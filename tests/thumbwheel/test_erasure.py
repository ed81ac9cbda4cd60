"""A person is forgotten: nothing is left, nothing comes back, and it is told what has learned from them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from thumbwheel import config
from thumbwheel.erasure import Erased, Erasure
from thumbwheel.errors import NotFound
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb


async def remains(store: Store, *words: str) -> list[str]:
    """Keys that name one of the words or hold it in what they store; the tombstone and lapsing keys aside."""
    found = []
    for key in await store.call("KEYS", "*"):
        kind = (await store.call("TYPE", key)).decode()
        read = {
            "hash": ("HGETALL",),
            "zset": ("ZRANGE",),
            "set": ("SMEMBERS",),
            "stream": ("XRANGE",),
            "list": ("LRANGE",),
        }
        bounds = {"zset": (0, -1), "stream": ("-", "+"), "list": (0, -1)}.get(kind, ())
        text = repr((key, await store.call(*read.get(kind, ("GET",)), key, *bounds)))
        if any(word in text for word in words) and ":idempotency:" not in text:
            found.append(key.decode().partition("}:")[2])
    return found


async def test_nothing_is_left_of_one_and_everything_of_others(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    for number, owner in enumerate(("ann", "bob") * 3):
        await make.log(turns, f"{owner}-turn-{number}", answers=2, owner=owner)
        if number < 4:
            for up in (True, False):  # a vote that was changed is two events
                await feedback.append(make.thumb(f"{owner}-turn-{number}", up=up, rater=owner), f"{number}{up}")
    erased = await Erasure(store).erase("ann")
    assert erased == Erased(turns=3, votes=2, versions=())
    assert await remains(store, "ann") == ["erased"]
    assert [turn.record.owner async for turn in turns.recent(10)] == ["bob"] * 3
    assert [event.rater for _, event in (await feedback.page(size=10))[0]] == ["bob"] * 2
    assert await VoteStream(store).waiting() == 4
    assert await Erasure(store).erase("ann") == Erased(0, 0, ())
    assert await Erasure(store).erase("nobody") == Erased(0, 0, ())


async def test_what_was_on_its_way_is_not_kept_and_what_comes_later_is(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    under_way = make.turn("ann-early", owner="ann")
    await Erasure(store).erase("ann")
    assert await turns.append(under_way, make.response("ann-early")) == chat_pb2.LOG_STATUS_NOT_LOGGED
    with pytest.raises(NotFound):
        await feedback.append(make.thumb("ann-early", rater="ann"), "1")
    await asyncio.sleep(0.002)  # time is in milliseconds
    await make.log(turns, "ann-late", owner="ann")
    await feedback.append(make.thumb("ann-late", rater="ann"), "2")


async def test_answers_that_waited_for_the_store_do_not_come_back(own_store: Store, own_redis: Any, make: Any) -> None:
    turns = TurnLog(own_store, config.TurnLog())
    own_redis.freeze()
    assert await turns.append(make.turn("ann-t", owner="ann"), make.response("ann-t")) == chat_pb2.LOG_STATUS_PENDING
    own_redis.thaw()
    await Erasure(own_store).erase("ann")
    assert await turns.flush()
    assert turns.pending == 0
    assert await remains(own_store, "ann-t") == []


async def test_a_batch_that_was_frozen_learns_without_the_person(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    for number, owner in enumerate(("ann", "bob", "ann", "bob")):
        await make.log(turns, f"t{number}", owner=owner)
        await feedback.append(make.thumb(f"t{number}", rater=owner), f"{number}")
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 3)
    assert len(batch.event_ids) == 3
    await Erasure(store).erase("ann")
    assert [event.rater for _, event in await votes.read(batch)] == ["bob"]
    assert await votes.dead_letters() == 0, "an erased vote is no corrupt one"
    await Registry(store).commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="too_few_votes"), None)
    assert await votes.waiting() == 1
    batch = await votes.freeze(lease, "cycle-2", "base", 1, 3)
    assert [event.rater for _, event in await votes.read(batch)] == ["bob"]


async def test_a_vote_before_the_first_cycle_goes_too(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1", owner="ann")
    await feedback.append(make.thumb("t1", rater="ann"), "1")
    assert (await Erasure(store).erase("ann")).votes == 1
    assert await store.call("XLEN", store.keys.votes) == 0


async def test_versions_that_learned_from_a_person_are_listed_with_their_descendants(
    store: Store, registry: Registry
) -> None:
    for name, parent in (("v1", "base"), ("v2", "v1"), ("v3", "v2"), ("other", "v1"), ("late", "base")):
        await registry.register(pb.VersionRecord(name=name, parent=parent, state=pb.VERSION_STATE_CANDIDATE))
    erasure = Erasure(store)
    await erasure.note_learned("v1", ["bob"])
    await erasure.note_learned("v2", ["ann", "bob"])
    assert (await erasure.erase("ann")).versions == ("v2", "v3")
    assert (await erasure.erase("bob")).versions == ("v1", "v2", "v3", "other")
    assert (await erasure.erase("ann")).versions == ("v2", "v3"), "asked again it is told again"


async def test_a_cycle_can_see_that_somebody_was_erased_under_it(store: Store) -> None:
    erasure, began = Erasure(store), int(time.time() * 1000)
    assert not await erasure.erased_since(["ann", "bob"], began)
    assert not await erasure.erased_since([], began)
    before = await erasure.erasures()
    await erasure.erase("ann")
    assert await erasure.erased_since(["ann", "bob"], began)
    assert not await erasure.erased_since(["bob"], began)
    assert not await erasure.erased_since(["ann"], int(time.time() * 1000) + 1000)
    assert await erasure.erasures() == before + 1
