from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from thumbwheel import registry as registry_module
from thumbwheel.errors import Conflict, CorruptRecord, InvalidInput, LeaseLost, NotFound, NotReady
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

LIVE, RETIRED, REJECTED = pb.VERSION_STATE_LIVE, pb.VERSION_STATE_RETIRED, pb.VERSION_STATE_REJECTED
CANDIDATE, TRAINING, ROLLED_BACK = pb.VERSION_STATE_CANDIDATE, pb.VERSION_STATE_TRAINING, pb.VERSION_STATE_ROLLED_BACK


async def register(registry: Registry, *names: str, state: pb.VersionState.ValueType = CANDIDATE) -> None:
    for name in names:
        await registry.register(pb.VersionRecord(name=name, state=state, parent="base", path=name))


async def states(registry: Registry) -> dict[str, pb.VersionState.ValueType]:
    return {record.name: record.state for record in (await registry.page(1000, include_training=True))[0]}


async def test_the_base_is_live_from_the_start(registry: Registry) -> None:
    live = await registry.live()
    assert (live.name, live.adapter_id, live.state, live.path) == ("base", 0, LIVE, "")
    assert await registry.get("base") == live
    assert await registry.page(10) == ([live], "")


async def test_the_base_is_live_in_an_empty_list_too(registry: Registry) -> None:
    assert [record.name for record in (await registry.page(10))[0]] == ["base"]


async def test_registering_allots_numbers_that_never_come_again(registry: Registry) -> None:
    first = await registry.register(pb.VersionRecord(name="v1", state=CANDIDATE))
    with pytest.raises(Conflict, match="v1"):
        await registry.register(pb.VersionRecord(name="v1", state=CANDIDATE))
    second = await registry.register(pb.VersionRecord(name="v2", state=CANDIDATE))
    assert 0 < first.adapter_id < second.adapter_id
    assert first.HasField("created_at")
    assert await registry.get("v1") == first


@pytest.mark.parametrize("name", ["", "a b", "../x", "-x", "x/y", "x\n", "é", "x" * 129])
async def test_names_that_are_none(registry: Registry, name: str) -> None:
    with pytest.raises(InvalidInput, match="name"):
        await registry.register(pb.VersionRecord(name=name))


async def test_the_bases_name_is_taken(registry: Registry) -> None:
    with pytest.raises(Conflict):
        await registry.register(pb.VersionRecord(name="base"))


async def test_many_registering_one_name_at_once(registry: Registry) -> None:
    calls = [registry.register(pb.VersionRecord(name="v1", reasons=[str(i)])) for i in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    kept = [result for result in results if isinstance(result, pb.VersionRecord)]
    assert len(kept) == 1
    assert all(isinstance(result, Conflict) for result in results if result is not kept[0])
    assert await registry.get("v1") == kept[0]


async def test_a_version_that_is_not_there(registry: Registry) -> None:
    for call in (registry.get("v1"), registry.promote("v1", "r"), registry.set_state("v1", CANDIDATE)):
        with pytest.raises(NotFound, match="v1"):
            await call


async def test_pages_newest_first(registry: Registry) -> None:
    for i in range(7):
        await register(registry, f"v{i}", state=TRAINING if i in {2, 3, 6} else CANDIDATE)
    seen, token = [], ""
    while True:
        records, token = await registry.page(2, token)
        assert len(records) <= 2
        seen += [record.name for record in records]
        if not token:
            break
    assert seen == ["v5", "v4", "v1", "v0", "base"]
    everything, token = await registry.page(8, include_training=True)
    assert [record.name for record in everything] == [*(f"v{i}" for i in range(6, -1, -1)), "base"]
    assert token == ""
    with pytest.raises(InvalidInput, match="page_token"):
        await registry.page(2, "x")


async def test_promotion_moves_the_pointer_and_both_states(registry: Registry) -> None:
    await register(registry, "v1")
    live, previous = await registry.promote("v1", "it is better")
    assert (live.name, live.state, list(live.reasons), previous) == ("v1", LIVE, ["it is better"], "base")
    assert await registry.live() == live
    assert await states(registry) == {"v1": LIVE, "base": RETIRED}
    assert "v1" in (await registry.get("base")).reasons[0]


async def test_promoting_what_is_live_changes_nothing(registry: Registry, store: Store) -> None:
    await register(registry, "v1")
    first = await registry.promote("v1", "first")
    changes = await store.call("XLEN", store.keys.changes)
    assert await registry.promote("v1", "second") == first
    assert await registry.promote("v1", "third", expected_live="base") == first
    assert await store.call("XLEN", store.keys.changes) == changes


async def test_what_may_not_go_live(registry: Registry) -> None:
    await register(registry, "training", state=TRAINING)
    await register(registry, "rejected", state=REJECTED)
    for name in ("training", "rejected"):
        with pytest.raises(NotReady, match=name):
            await registry.promote(name, "please")
    assert (await registry.live()).name == "base"


async def test_rolling_back_step_by_step(registry: Registry) -> None:
    await register(registry, "v1", "v2", "v3", "v4")
    for name in ("v1", "v2", "v3"):
        await registry.promote(name, "up")
    live, previous = await registry.roll_back("bad")
    assert (live.name, live.state, previous) == ("v2", LIVE, "v3")
    assert list((await registry.get("v3")).reasons) == ["bad"]
    assert await states(registry) == {"v4": CANDIDATE, "v3": ROLLED_BACK, "v2": LIVE, "v1": RETIRED, "base": RETIRED}
    await registry.promote("v4", "up")
    assert [(await registry.roll_back("bad"))[0].name for _ in range(3)] == ["v2", "v1", "base"]
    with pytest.raises(NotReady, match="nothing to roll back to"):
        await registry.roll_back("bad")
    assert (await registry.live()).state == LIVE


async def test_rolling_back_passes_over_what_was_taken_back(registry: Registry) -> None:
    await register(registry, "v1", "v2")
    for name in ("v1", "v2", "v1"):  # v1 before and after v2
        await registry.promote(name, "up")
    assert (await registry.roll_back("bad"))[0].name == "v2"
    assert (await registry.roll_back("bad"))[0].name == "base"  # not v1, which was taken back itself


async def test_a_version_that_was_taken_back_may_be_promoted_again(registry: Registry) -> None:
    await register(registry, "v1")
    await registry.promote("v1", "up")
    await registry.roll_back("a mistake")
    assert (await registry.promote("v1", "it was not its fault"))[0].state == LIVE
    assert (await registry.roll_back("it was"))[0].name == "base"


async def test_an_operator_may_make_the_base_live(registry: Registry) -> None:
    await register(registry, "v1")
    await registry.promote("v1", "up")
    assert (await registry.promote("base", "start anew"))[1] == "v1"
    with pytest.raises(NotReady):
        await registry.roll_back("no")


async def test_expectations_guard_promotion_and_rollback(registry: Registry) -> None:
    await register(registry, "v1", "v2")
    await registry.promote("v1", "up", expected_live="base")
    with pytest.raises(Conflict, match="v1 is live, not base"):
        await registry.promote("v2", "up", expected_live="base")
    with pytest.raises(Conflict, match="v1 is live, not v2"):
        await registry.roll_back("bad", expected_live="v2")
    assert (await registry.roll_back("bad", expected_live="v1"))[0].name == "base"


async def test_two_rollbacks_at_once_take_back_one_version(store: Store) -> None:
    registries = [Registry(store) for _ in range(8)]
    await register(registries[0], "v1", "v2")
    for name in ("v1", "v2"):
        await registries[0].promote(name, "up")
    calls = [registry.roll_back(f"bad, says {i}", expected_live="v2") for i, registry in enumerate(registries)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 7
    assert (await registries[0].live()).name == "v1"


async def test_a_rollback_takes_back_no_version_that_it_has_not_seen(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(registry, "v1", "v2")
    await registry.promote("v1", "up")
    script, interfered = store.script, False

    async def interfering(name: str, *args: Any, **options: Any) -> Any:
        nonlocal interfered
        if name == "write_versions" and not interfered:
            interfered = True
            await Registry(store).promote("v2", "in between")
        return await script(name, *args, **options)

    monkeypatch.setattr(store, "script", interfering)
    with pytest.raises(Conflict, match="v2 is live, not v1"):
        await registry.roll_back("bad")
    assert (await registry.live()).name == "v2"


async def test_promotions_at_once_end_with_one_live_version(store: Store) -> None:
    registry = Registry(store)
    names = [f"v{i}" for i in range(6)]
    await register(registry, *names)
    await asyncio.gather(*(Registry(store).promote(name, "race") for name in names))
    found = await states(registry)
    assert sorted(name for name, state in found.items() if state == LIVE) == [(await registry.live()).name]
    for _ in names:
        await registry.roll_back("back")
    assert (await registry.live()).name == "base"


async def test_a_repeated_write_is_a_success(registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client repeats a script whose answer was lost: a rollback must not go two steps."""
    await register(registry, "v1", "v2")
    script = store.script

    async def twice(name: str, *args: Any, **options: Any) -> Any:
        await script(name, *args, **options)
        return await script(name, *args, **options)

    monkeypatch.setattr(store, "script", twice)
    await register(registry, "v3")
    assert (await registry.promote("v1", "up"))[1] == "base"
    assert (await registry.promote("v2", "up"))[1] == "v1"
    assert (await registry.roll_back("bad"))[0].name == "v1"
    assert (await registry.live()).name == "v1"


async def test_states_other_than_live(registry: Registry) -> None:
    await register(registry, "v1", state=TRAINING)
    await registry.set_state("v1", CANDIDATE, metrics={"kl": 1.5})
    record = await registry.set_state("v1", REJECTED, ["too long"], {"auc": 0.7})
    assert (record.state, list(record.reasons), dict(record.metrics)) == (
        REJECTED,
        ["too long"],
        {"kl": 1.5, "auc": 0.7},
    )
    assert await registry.get("v1") == record


async def test_live_is_only_for_promotion_and_rollback(registry: Registry) -> None:
    await register(registry, "v1")
    with pytest.raises(InvalidInput, match="state"):
        await registry.set_state("v1", LIVE)
    await registry.promote("v1", "up")
    with pytest.raises(InvalidInput, match="state"):
        await registry.set_state("v1", REJECTED)


async def test_a_corrupt_record_is_refused_and_left_out_of_lists(registry: Registry, store: Store) -> None:
    await register(registry, "v1", "v2")
    sealed = await store.call("HGET", store.keys.versions, "v1")
    await store.call("HSET", store.keys.versions, "v1", sealed[:-1] + bytes([sealed[-1] ^ 1]))
    with pytest.raises(CorruptRecord):
        await registry.get("v1")
    assert [record.name for record in (await registry.page(10))[0]] == ["v2", "base"]


async def rot(store: Store, name: str) -> None:
    await store.call("HSET", store.keys.versions, name, b"?" + await store.call("HGET", store.keys.versions, name))


async def test_a_live_version_whose_record_is_corrupt_can_be_replaced(registry: Registry, store: Store) -> None:
    await register(registry, "v1", "v2")
    await registry.promote("v1", "up")
    await rot(store, "v1")
    assert await registry.live() == pb.VersionRecord(name="v1")
    await registry.promote("v2", "up")
    assert (await registry.get("v1")).state == RETIRED


async def test_versions_can_be_registered_after_a_rollback_to_the_base(registry: Registry) -> None:
    await register(registry, "v1")
    await registry.promote("v1", "up")
    await registry.roll_back("a test")
    await register(registry, "v2")
    assert (await registry.live()).name == "base"


async def test_the_base_needs_no_record(registry: Registry, store: Store) -> None:
    await registry.live()
    await rot(store, "base")
    assert (await registry.get("base")).name == "base"
    await register(registry, "v1")
    await registry.promote("v1", "up")
    assert (await registry.get("base")).state == RETIRED


async def test_rolling_back_passes_corrupt_records_over(registry: Registry, store: Store) -> None:
    await register(registry, "v1", "v2", "v3")
    for name in ("v1", "v2", "v3"):
        await registry.promote(name, "up")
    await rot(store, "v2")
    await rot(store, "v3")
    live, taken_back = await registry.roll_back("a test")
    assert (live.name, taken_back) == ("v1", "v3")
    assert (await registry.get("v3")).state == ROLLED_BACK


# Changes


@asynccontextmanager
async def watching(registry: Registry) -> AsyncIterator[Any]:
    """Reads changes one by one, each within a deadline."""
    async with aclosing(registry.changes()) as changes:

        async def after() -> tuple[str, pb.VersionState.ValueType, str]:
            async with asyncio.timeout(20):
                record, live = await anext(changes)
            return record.name, record.state, live

        yield after


async def test_the_live_version_first_then_every_change(registry: Registry, store: Store) -> None:
    async with watching(Registry(store)) as after:
        assert await after() == ("base", LIVE, "base")
        await register(registry, "v1", state=TRAINING)
        assert await after() == ("v1", TRAINING, "base")
        await registry.set_state("v1", CANDIDATE)
        assert await after() == ("v1", CANDIDATE, "base")
        await registry.promote("v1", "up")
        assert await after() == ("base", RETIRED, "v1")
        assert await after() == ("v1", LIVE, "v1")
        await registry.roll_back("bad")
        assert await after() == ("v1", ROLLED_BACK, "base")
        assert await after() == ("base", LIVE, "base")


async def test_a_change_comes_at_once(registry: Registry, store: Store) -> None:
    await register(registry, "v1")
    async with watching(Registry(store)) as after:
        await after()
        waiter = asyncio.create_task(after())
        clock = asyncio.get_running_loop().time
        started = clock()
        await registry.promote("v1", "up")
        await waiter
        assert clock() - started < registry_module.BLOCK_SECONDS / 2


async def test_waiting_outlasts_the_clients_time_limit(
    registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """Waits that end without a change follow each other; none breaks the watch."""
    monkeypatch.setattr("thumbwheel.registry.BLOCK_SECONDS", 0.05)
    waits = 0
    next_changes = registry_module._next_changes

    async def counted(*args: Any) -> Any:
        nonlocal waits
        changes = await next_changes(*args)
        waits += not changes
        return changes

    monkeypatch.setattr(registry_module, "_next_changes", counted)
    async with watching(Registry(store)) as after:
        await after()
        waiter = asyncio.create_task(after())

        async def waited() -> bool:
            return waits >= 5

        await until(waited)
        assert not waiter.done()
        await register(registry, "v1")
        assert (await waiter)[0] == "v1"
    assert store.failures == 0


async def test_the_watch_goes_on_across_a_restart(own_redis: Any, own_store: Store) -> None:
    registry = Registry(own_store)
    await register(registry, "v1", "v2")
    async with watching(Registry(own_store)) as after:
        assert await after() == ("base", LIVE, "base")
        waiter = asyncio.create_task(after())
        own_redis.kill()
        own_redis.start()
        await registry.promote("v1", "while nobody watched")
        seen = [await waiter]
        while seen[-1] != ("v1", LIVE, "v1"):
            seen.append(await after())
        await registry.promote("v2", "afterwards")
        while seen[-1] != ("v2", LIVE, "v2"):
            seen.append(await after())


async def test_the_watch_starts_while_the_store_is_away(
    own_redis: Any, own_store: Store, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.kill()
    async with watching(Registry(own_store)) as after:
        waiter = asyncio.create_task(after())

        async def tried() -> bool:
            return "changes_interrupted" in caplog.text

        await until(tried)
        assert not waiter.done()
        own_redis.start()
        assert await waiter == ("base", LIVE, "base")


async def test_a_corrupt_change_is_passed_over(registry: Registry, store: Store) -> None:
    async with watching(Registry(store)) as after:
        await after()
        await store.call("XADD", store.keys.changes, "*", "v", b"rubbish", "l", "base")
        await register(registry, "v1")
        assert (await after())[0] == "v1"


# A cycle's end


@pytest.fixture
async def batch(turns: TurnLog, feedback: FeedbackLog, votes: VoteStream, lease: Lease, make: Any) -> pb.BatchManifest:
    await make.vote(turns, feedback, 3)
    return await votes.freeze(lease, "cycle-1", "base", 1, 100)


def cycle(batch: pb.BatchManifest, version: str = "", **facts: Any) -> pb.CycleRecord:
    return pb.CycleRecord(batch=batch, version=version, reasons=["because"], metrics={"kl": 2.0}, **facts)


async def test_a_released_cycle(registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest) -> None:
    await register(registry, "v1")
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    live = await registry.live()
    assert (live.name, live.state, list(live.reasons), dict(live.metrics)) == ("v1", LIVE, ["because"], {"kl": 2.0})
    assert (await registry.get("base")).state == RETIRED
    assert await votes.waiting() == 0
    (kept,) = await registry.lineage(10)
    assert (kept.outcome, kept.version, kept.batch) == ("released", "v1", batch)
    assert kept.HasField("finished_at")
    assert (await registry.roll_back("bad"))[0].name == "base"


async def test_a_rejected_cycle(registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest) -> None:
    await register(registry, "v1")
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="rejected"), None)
    record = await registry.get("v1")
    assert (record.state, list(record.reasons), dict(record.metrics)) == (REJECTED, ["because"], {"kl": 2.0})
    assert (await registry.live()).name == "base"
    assert await votes.waiting() == 0


async def test_a_cycle_without_a_version(
    registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest
) -> None:
    await registry.commit_cycle(lease, cycle(batch, outcome="reward_model_below_floor"), None)
    assert await votes.waiting() == 0
    assert await states(registry) == {"base": LIVE}


async def test_committing_again_has_no_effect(
    registry: Registry, store: Store, lease: Lease, batch: pb.BatchManifest
) -> None:
    await register(registry, "v1", "v2")
    released = cycle(batch, "v1", outcome="released")
    await registry.commit_cycle(lease, released, "v1")
    await registry.promote("v2", "by hand")
    changes = await store.call("XLEN", store.keys.changes)
    await registry.commit_cycle(lease, released, "v1")
    assert (await registry.live()).name == "v2"
    assert len(await registry.lineage(10)) == 1
    assert await store.call("XLEN", store.keys.changes) == changes


async def test_a_commit_whose_answer_was_lost(
    registry: Registry, store: Store, lease: Lease, batch: pb.BatchManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    await register(registry, "v1")
    script = store.script

    async def twice(name: str, *args: Any, **options: Any) -> Any:
        await script(name, *args, **options)
        return await script(name, *args, **options)

    monkeypatch.setattr(store, "script", twice)
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    assert len(await registry.lineage(10)) == 1
    assert (await registry.live()).name == "v1"


async def test_a_fenced_learner_commits_nothing(
    registry: Registry, store: Store, votes: VoteStream, lease: Lease, batch: pb.BatchManifest
) -> None:
    await register(registry, "v1")
    await store.call("DEL", store.keys.lease)  # it lapses
    assert await Lease(store, "next", 60).acquire()
    with pytest.raises(LeaseLost):
        await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    assert await states(registry) == {"v1": CANDIDATE, "base": LIVE}
    assert await registry.lineage(10) == []
    assert await votes.waiting() == 3


async def test_a_cycle_that_was_not_frozen(
    registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest
) -> None:
    other = pb.BatchManifest(cycle_id="cycle-7", parent="base", event_ids=batch.event_ids)
    with pytest.raises(Conflict, match="cycle-7"):
        await registry.commit_cycle(lease, cycle(other, outcome="x"), None)
    assert await votes.waiting() == 3


async def test_a_release_whose_parent_is_no_longer_live(
    registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest
) -> None:
    await register(registry, "v1", "v2")
    await registry.promote("v2", "by hand, while the cycle ran")
    with pytest.raises(Conflict, match="v2 is live now"):
        await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    assert await votes.waiting() == 3
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="superseded"), None)
    assert await votes.waiting() == 0
    assert await states(registry) == {"v2": LIVE, "v1": REJECTED, "base": RETIRED}


async def test_a_version_promoted_by_hand_before_its_cycle_ends_stays_live(
    registry: Registry, votes: VoteStream, lease: Lease, batch: pb.BatchManifest
) -> None:
    await register(registry, "v1")
    await registry.promote("v1", "by hand")
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="rejected"), None)
    live = await registry.live()
    assert (live.name, live.state, dict(live.metrics)) == ("v1", LIVE, {"kl": 2.0})
    assert await votes.waiting() == 0


async def test_what_a_cycle_cannot_release(registry: Registry, lease: Lease, batch: pb.BatchManifest) -> None:
    await register(registry, "v1", state=TRAINING)
    with pytest.raises(ValueError, match="cannot release"):
        await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v2")
    with pytest.raises(NotReady, match="still training"):
        await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    with pytest.raises(NotFound):
        await registry.commit_cycle(lease, cycle(batch, "v9", outcome="rejected"), None)


async def test_lineage_newest_first(registry: Registry, votes: VoteStream, lease: Lease, store: Store) -> None:
    for number in range(1, 5):
        frozen = await votes.freeze(lease, f"cycle-{number}", "base", number, 10)
        await registry.commit_cycle(lease, cycle(frozen, outcome="too_few_votes"), None)
    assert [kept.batch.cycle_id for kept in await registry.lineage(3)] == ["cycle-4", "cycle-3", "cycle-2"]
    assert await registry.lineage(0) == []


async def test_a_promotion_during_the_commit_is_seen(
    registry: Registry, store: Store, lease: Lease, batch: pb.BatchManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading and writing somebody rejects by promoting another: the commit reads again and refuses."""
    await register(registry, "v1", "v2")
    script, interfered = store.script, False

    async def interfering(name: str, *args: Any, **options: Any) -> Any:
        nonlocal interfered
        if name == "write_versions" and not interfered:
            interfered = True
            await Registry(store).promote("v2", "in between")
        return await script(name, *args, **options)

    monkeypatch.setattr(store, "script", interfering)
    with pytest.raises(Conflict, match="v2 is live now"):
        await registry.commit_cycle(lease, cycle(batch, "v1", outcome="released"), "v1")
    assert (await registry.live()).name == "v2"


CANARY = pb.VERSION_STATE_CANARY


@pytest.fixture
async def on_trial(registry: Registry, lease: Lease, batch: pb.BatchManifest) -> Registry:
    """With v1 on trial beside the base."""
    await register(registry, "v1", "v2")
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="on_trial"), "v1", trial=True)
    return registry


async def test_a_cycle_puts_its_version_on_trial(on_trial: Registry, votes: VoteStream) -> None:
    canary = await on_trial.canary()
    assert canary is not None
    assert (canary.name, canary.state, list(canary.reasons)) == ("v1", CANARY, ["because"])
    assert (await on_trial.live()).name == "base"
    assert await votes.waiting() == 0
    async with aclosing(on_trial.changes()) as changes:
        news = [await anext(changes) for _ in range(2)]
    assert [(record.name, live) for record, live in news] == [("base", "base"), ("v1", "base")]


async def test_a_trial_ends_well(on_trial: Registry) -> None:
    live, previous = await on_trial.end_trial("v1", "people like it", promote=True)
    assert (live.name, live.state, list(live.reasons), previous) == ("v1", LIVE, ["people like it"], "base")
    assert await on_trial.canary() is None
    assert (await on_trial.roll_back("after all"))[0].name == "base"


async def test_a_trial_ends_badly(on_trial: Registry) -> None:
    live, gone = await on_trial.end_trial("v1", "people do not like it", promote=False)
    assert (live.name, gone) == ("base", "v1")
    assert await on_trial.canary() is None
    assert await states(on_trial) == {"base": LIVE, "v1": ROLLED_BACK, "v2": CANDIDATE}
    with pytest.raises(Conflict, match="v1"):
        await on_trial.end_trial("v1", "too late", promote=True)


async def test_an_operators_rollback_takes_the_canary_back_first(on_trial: Registry) -> None:
    live, gone = await on_trial.roll_back("I do not like it")
    assert (live.name, gone) == ("base", "v1")
    assert (await on_trial.get("v1")).state == ROLLED_BACK


async def test_an_operators_promotion_ends_a_trial(on_trial: Registry) -> None:
    assert (await on_trial.promote("v2", "this one"))[1] == "base"
    assert await on_trial.canary() is None
    canary = await on_trial.get("v1")
    assert canary.state == RETIRED
    assert "made way for v2" in canary.reasons[0]


async def test_an_operator_may_promote_the_canary(on_trial: Registry) -> None:
    assert (await on_trial.promote("v1", "I have seen enough"))[0].state == LIVE
    assert await on_trial.canary() is None


async def test_a_rollback_that_means_the_live_version_ends_the_trial_too(
    registry: Registry, lease: Lease, batch: pb.BatchManifest
) -> None:
    await register(registry, "v1", "v2")
    await registry.promote("v2", "by hand")
    batch.parent = "v2"
    await registry.commit_cycle(lease, cycle(batch, "v1", outcome="on_trial"), "v1", trial=True)
    live, gone = await registry.roll_back("a server refused it", expected_live="v2")
    assert (live.name, gone, await registry.canary()) == ("base", "v2", None)
    assert (await registry.get("v1")).state == RETIRED


async def test_one_trial_at_a_time(
    on_trial: Registry, votes: VoteStream, turns: TurnLog, feedback: FeedbackLog, lease: Lease, make: Any
) -> None:
    await make.vote(turns, feedback, 2, 10)
    other = await votes.freeze(lease, "cycle-2", "base", 1, 100)
    with pytest.raises(Conflict, match="v1 still is"):
        await on_trial.commit_cycle(lease, cycle(other, "v2", outcome="on_trial"), "v2", trial=True)


async def test_a_canarys_state_is_only_its_trials(on_trial: Registry) -> None:
    for name, state in (("v1", REJECTED), ("v2", CANARY)):
        with pytest.raises(InvalidInput, match="state"):
            await on_trial.set_state(name, state)
    await on_trial.add_metrics("v1", {"trial_raters": 3.0})
    canary = await on_trial.canary()
    assert canary is not None
    assert (canary.state, canary.metrics["trial_raters"]) == (CANARY, 3.0)
