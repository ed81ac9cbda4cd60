from __future__ import annotations

from typing import Any

import pytest

from thumbwheel.errors import Conflict, CorruptRecord, LeaseLost
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.records import seal
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import StreamId, VoteStream, lowest_untrained
from thumbwheel_client.v1 import record_pb2 as pb


async def commit(registry: Registry, lease: Lease, batch: pb.BatchManifest) -> None:
    await registry.commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="too_few_votes"), None)


def test_ids_are_ordered_as_numbers() -> None:
    assert StreamId.parse("9-9") < StreamId.parse(b"10-0") < StreamId.parse("10-2") < StreamId.parse("10-10")
    assert str(StreamId.parse("10-2").next()) == "10-3"


async def test_votes_of_before_the_first_learner_count(
    turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    assert await votes.waiting() == 0
    ids = await make.vote(turns, feedback, 5)
    assert await votes.waiting() == 5
    batch = await votes.freeze(lease, "cycle-1", "base", 7, 100)
    assert (list(batch.event_ids), batch.cycle_id, batch.parent, batch.seed) == (ids, "cycle-1", "base", 7)
    assert await votes.waiting() == 5  # frozen is not committed


async def test_the_batch_is_what_was_voted_in_order(
    turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 4)
    batch = await votes.freeze(lease, "cycle-1", "base", 7, 100)
    read = await votes.read(batch)
    assert [name for name, _ in read] == ids
    assert [event.turn_id for _, event in read] == ["t0", "t1", "t2", "t3"]


async def test_a_batch_is_bounded_and_the_rest_waits(
    turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 7)
    seen: list[str] = []
    for number, left in [(1, 4), (2, 1), (3, 0)]:
        batch = await votes.freeze(lease, f"cycle-{number}", "base", 1, 3)
        seen += batch.event_ids
        await commit(registry, lease, batch)
        assert await votes.waiting() == left
    assert seen == ids


async def test_nothing_waiting_makes_an_empty_batch(votes: VoteStream, registry: Registry, lease: Lease) -> None:
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 3)
    assert list(batch.event_ids) == []
    assert await votes.read(batch) == []
    await commit(registry, lease, batch)


async def test_a_killed_learners_batch_is_taken_up_as_it_was(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, lease: Lease, make: Any
) -> None:
    await make.vote(turns, feedback, 3)
    batch = await votes.freeze(lease, "cycle-1", "base", 7, 100)
    await make.vote(turns, feedback, 3, start=3)
    await lease.release()
    heir = Lease(store, "heir", 60)
    assert await heir.acquire()
    assert await VoteStream(store).freeze(heir, "cycle-9", "v5", 8, 2) == batch
    await commit(registry, heir, batch)
    assert await votes.waiting() == 3


async def test_votes_delivered_to_a_learner_killed_before_it_froze_are_not_lost(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 4)
    assert await votes.waiting() == 4
    await store.call("XREADGROUP", "GROUP", "learner", "leader", "COUNT", 3, "STREAMS", store.keys.votes, ">")
    assert await votes.waiting() == 4
    batch = await votes.freeze(lease, "cycle-1", "base", 7, 100)
    assert list(batch.event_ids) == ids


async def test_a_late_learner_freezes_and_commits_nothing(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, make: Any, until: Any
) -> None:
    await make.vote(turns, feedback, 3)
    late, leader = Lease(store, "late", 0.05), Lease(store, "leader", 60)
    assert await late.acquire()
    await until(leader.acquire)
    with pytest.raises(LeaseLost):
        await votes.freeze(late, "cycle-1", "base", 1, 100)
    batch = await votes.freeze(leader, "cycle-2", "base", 1, 100)
    with pytest.raises(LeaseLost):  # not even a look at the other's batch
        await votes.freeze(late, "cycle-1", "base", 1, 100)
    with pytest.raises(LeaseLost):
        await commit(registry, late, batch)
    with pytest.raises(LeaseLost):
        await votes.thaw(late)
    assert await registry.lineage(10) == []
    assert await votes.waiting() == 3
    await commit(registry, leader, batch)
    assert await votes.waiting() == 0


async def test_an_unreadable_manifest_is_set_aside_and_its_votes_are_frozen_anew(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 3)
    await votes.freeze(lease, "cycle-1", "base", 1, 100)
    await store.call("HSET", store.keys.manifest, "data", b"rotten")
    again = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    assert list(again.event_ids) == ids
    kept = await store.call("XRANGE", store.keys.dead, "-", "+")
    assert [fields for _, fields in kept] == [[b"id", b"cycle-1", b"v", b"rotten"]]


async def test_votes_of_a_batch_that_is_let_go_wait_again(
    turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 3)
    await votes.freeze(lease, "cycle-1", "torn", 1, 100)
    await votes.thaw(lease)
    again = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    assert (list(again.event_ids), again.parent) == (ids, "base")
    assert await votes.dead_letters() == 0


async def test_a_cycle_id_is_never_used_again(votes: VoteStream, registry: Registry, lease: Lease) -> None:
    await commit(registry, lease, await votes.freeze(lease, "cycle-1", "base", 1, 3))
    with pytest.raises(Conflict, match="cycle-1"):
        await votes.freeze(lease, "cycle-1", "base", 1, 3)


async def test_votes_that_cannot_be_read_go_to_the_dead_letters(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, lease: Lease, make: Any
) -> None:
    first = await make.vote(turns, feedback, 1)
    sealed = seal(make.thumb("t0"))
    bad = await store.call("XADD", store.keys.votes, "*", "v", sealed[:-1] + b"?")
    await store.call("XADD", store.keys.votes, "*", "other", "field")
    last = await make.vote(turns, feedback, 1, start=1)
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    assert list(batch.event_ids) == first + last
    assert await votes.dead_letters() == 2
    kept = await store.call("XRANGE", store.keys.dead, "-", "+")
    assert kept[0][1] == [b"id", bad, b"v", sealed[:-1] + b"?"]
    await commit(registry, lease, batch)
    assert await votes.waiting() == 0  # they do not block


async def test_a_vote_that_rots_after_it_was_frozen(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 3)
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    await store.call("XDEL", store.keys.votes, ids[1])
    for _ in range(2):  # a second look buries nothing twice
        assert [name for name, _ in await votes.read(batch)] == [ids[0], ids[2]]
        assert await votes.dead_letters() == 1
    await commit(registry, lease, batch)
    assert await votes.waiting() == 0


async def test_votes_deleted_by_hand_are_counted_and_passed_over(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 6)
    assert await votes.waiting() == 6
    await store.call("XREADGROUP", "GROUP", "learner", "leader", "COUNT", 2, "STREAMS", store.keys.votes, ">")
    await store.call("XDEL", store.keys.votes, ids[0], ids[4])
    assert await votes.waiting() == 2 + 3  # Redis gives no lag now
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    assert list(batch.event_ids) == [ids[1], ids[2], ids[3], ids[5]]
    assert await votes.waiting() == 4


async def test_other_votes_under_the_frozen_ids_are_noticed(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 2)
    batch = await votes.freeze(lease, "cycle-1", "base", 1, 100)
    entries = await store.call("XRANGE", store.keys.votes, "-", "+")
    await store.call("DEL", store.keys.votes)
    for (_, fields), name in zip(reversed(entries), ids, strict=True):
        await store.call("XADD", store.keys.votes, name, *fields)
    with pytest.raises(CorruptRecord, match="not those"):
        await votes.read(batch)


async def test_only_what_has_trained_is_trimmed(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, lease: Lease, make: Any
) -> None:
    ids = await make.vote(turns, feedback, 6)
    assert await votes.trim() == 0
    assert await lowest_untrained(store) <= StreamId.parse(ids[0])
    first = await votes.freeze(lease, "cycle-1", "base", 1, 2)
    assert await votes.trim() == 0
    assert await lowest_untrained(store) == StreamId.parse(ids[0])
    await commit(registry, lease, first)
    assert StreamId.parse(ids[1]) < await lowest_untrained(store) <= StreamId.parse(ids[2])
    assert await votes.trim() == 2
    second = await votes.freeze(lease, "cycle-2", "base", 1, 2)
    assert list(second.event_ids) == ids[2:4]
    assert [name for name, _ in await votes.read(second)] == ids[2:4]
    await commit(registry, lease, second)
    assert await votes.trim() == 2
    assert await votes.waiting() == 2


async def test_every_vote_trains_exactly_once_whatever_dies(
    store: Store, turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, registry: Registry, make: Any
) -> None:
    """Learners die before freezing, after freezing and after committing; the lineage has each vote once."""
    ids: list[str] = []
    for round_ in range(12):
        ids += await make.vote(turns, feedback, 3, start=3 * round_)
        lease = Lease(store, f"learner {round_}", 60)
        assert await lease.acquire()
        number = len(await registry.lineage(100)) + 1
        if round_ % 4 != 0:
            batch = await votes.freeze(lease, f"cycle-{number}", "base", 1, 5)
            if round_ % 4 != 1:
                await commit(registry, lease, batch)
                if round_ % 4 == 2:
                    await commit(registry, lease, batch)  # its answer was lost
            await votes.trim()
        await store.call("DEL", store.keys.lease)  # it dies, and its lease lapses
    lease = Lease(store, "last", 60)
    assert await lease.acquire()
    while await votes.waiting():
        number = len(await registry.lineage(100)) + 1
        await commit(registry, lease, await votes.freeze(lease, f"cycle-{number}", "base", 1, 5))
    trained = [name for cycle in reversed(await registry.lineage(100)) for name in cycle.batch.event_ids]
    assert trained == ids
