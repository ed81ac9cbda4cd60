"""Loading, swapping and taking back, with a real registry, real files, and an engine that counts."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

import server.versions
from server.engine import Weights
from server.engine_scripted import ScriptedEngine
from server.versions import Reach, Versions
from tests.processes import eventually
from thumbwheel.artifacts import model_digest, write_version
from thumbwheel.config import Config
from thumbwheel.errors import (
    AdapterRefused,
    EngineDead,
    InvalidInput,
    NotFound,
    NotReady,
    Overloaded,
    StoreUnavailable,
)
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

numbers = itertools.count()
Until = Callable[..., Awaitable[None]]


class CountingEngine(ScriptedEngine):
    """Remembers loads and unloads; a load waits while `gate` is closed."""

    def __init__(self, max_adapters: int) -> None:
        super().__init__(max_adapters=max_adapters)
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.unloaded: list[int] = []

    async def load(self, weights: Weights) -> None:
        self.begun.append(weights.name)
        await self.gate.wait()
        await super().load(weights)

    async def unload(self, adapter_id: int) -> None:
        self.unloaded.append(adapter_id)
        await super().unload(adapter_id)


class House:
    """A registry, an artifact folder and a server's versions over them."""

    def __init__(self, config: Config, store: Store, write_adapter: Callable[..., Path], folder: Path) -> None:
        self.config = config
        self.store = store
        self.registry = registry = Registry(store)
        self.engine = CountingEngine(config.server.max_adapters)
        self.versions = Versions(self.engine, registry, config)
        self._write = write_adapter
        self._folder = folder

    async def publish(
        self,
        name: str,
        state: pb.VersionState.ValueType = pb.VERSION_STATE_CANDIDATE,
        base_digest: str | None = None,
        **adapter: Any,
    ) -> pb.VersionRecord:
        def fill(folder: Path) -> None:
            self._write(folder, seed=next(numbers), **adapter)

        facts = {"base_digest": base_digest or model_digest(Path(self.config.model.path))}
        path, digest = write_version(self.config.artifact_root, name, fill, facts)
        return await self.registry.register(
            pb.VersionRecord(name=name, state=state, parent="base", path=path, manifest_sha256=digest)
        )

    async def go_live(self, name: str) -> None:
        await self.registry.promote(name, "a test says so")


@pytest.fixture
async def house(
    settings: Callable[..., Config], write_adapter: Callable[..., Path], tmp_path: Path
) -> AsyncIterator[House]:
    """Started and following; at most three adapters."""
    config = settings(max_adapters=3)
    store = await Store.open(config.redis.url, config.redis.namespace)
    made = House(config, store, write_adapter, tmp_path)
    await made.versions.start()
    follow = asyncio.create_task(made.versions.follow())
    yield made
    follow.cancel()
    with contextlib.suppress(asyncio.CancelledError, EngineDead):
        await follow
    await store.close()


async def answering(versions: Versions, name: str | None = None) -> Weights:
    async with versions.use(name) as weights:
        return weights


def nan(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = np.nan


async def test_the_base_answers_at_first(house: House) -> None:
    assert house.versions.live == "base"
    assert await answering(house.versions) == await answering(house.versions, "base") == Weights("base", 0, None)
    assert REGISTRY.get_sample_value("thumbwheel_live_version_info", {"version": "base"}) == 1


async def test_a_promoted_version_answers(house: House) -> None:
    record = await house.publish("v1")
    swaps = REGISTRY.get_sample_value("thumbwheel_swaps_total", {"result": "moved"}) or 0
    await house.go_live("v1")
    await house.versions.wait_live("v1", 10)
    assert house.versions.live == "v1"
    folder = house.config.artifact_root / record.path
    assert await answering(house.versions) == Weights("v1", record.adapter_id, folder)
    assert REGISTRY.get_sample_value("thumbwheel_live_version_info", {"version": "v1"}) == 1
    assert REGISTRY.get_sample_value("thumbwheel_live_version_info", {"version": "base"}) is None
    assert REGISTRY.get_sample_value("thumbwheel_swaps_total", {"result": "moved"}) == swaps + 1


async def test_who_is_answered_stays_on_his_version(house: House) -> None:
    await house.publish("v1")
    await house.publish("v2")
    await house.go_live("v1")
    await house.versions.wait_live("v1", 10)
    async with house.versions.use() as before:
        await house.go_live("v2")
        await house.versions.wait_live("v2", 10)
        assert before.name == "v1"
        assert before.adapter_id in house.engine.loaded
        assert (await answering(house.versions)).name == "v2"


async def test_rolling_back_loads_nothing_and_takes_less_than_a_second(house: House) -> None:
    for name in ("v1", "v2"):
        await house.publish(name)
        await house.go_live(name)
        await house.versions.wait_live(name, 10)
    loads = len(house.engine.begun)
    async with asyncio.timeout(1):
        await house.registry.roll_back("a test says so")
        await house.versions.wait_live("v1", 1)
    assert len(house.engine.begun) == loads


async def test_rolling_back_does_not_wait_for_a_load_that_it_makes_needless(house: House, until: Until) -> None:
    await house.publish("v1")
    await house.publish("v2")
    await house.go_live("v1")
    await house.versions.wait_live("v1", 10)
    house.engine.gate.clear()
    await house.go_live("v2")
    await until(lambda: "v2" in house.engine.begun)
    await house.registry.roll_back("changed our minds")
    await house.publish("v3")
    # The news about v1 has been followed when the newer target, whose load is as blocked, is being loaded.
    await house.go_live("v3")
    await until(lambda: "v3" in house.engine.begun)
    assert house.versions.live == "v1"
    house.engine.gate.set()
    await house.versions.wait_live("v3", 10)
    assert await answering(house.versions, "v2"), "the load that was overtaken still ends"


async def test_wait_live_gives_up(house: House) -> None:
    with pytest.raises(TimeoutError):
        await house.versions.wait_live("v1", 0.01)


async def test_a_refused_version_is_rolled_back_with_the_reason(house: House, until: Until) -> None:
    await house.publish("v1")
    await house.go_live("v1")
    await house.versions.wait_live("v1", 10)
    await house.publish("bad", tensors=nan)
    refused = REGISTRY.get_sample_value("thumbwheel_refused_adapters_total", {"reason": "not_finite"}) or 0
    await house.go_live("bad")
    async with asyncio.timeout(10):
        while (await house.registry.live()).name == "bad":  # noqa: ASYNC110 - nothing announces it here
            await asyncio.sleep(0.01)
    record = await house.registry.get("bad")
    assert record.state == pb.VERSION_STATE_ROLLED_BACK
    assert "NaN" in record.reasons[0]
    assert house.versions.live == (await house.registry.live()).name == "v1"
    assert record.adapter_id not in house.engine.loaded
    assert "bad" not in house.engine.begun
    assert REGISTRY.get_sample_value("thumbwheel_refused_adapters_total", {"reason": "not_finite"}) == refused + 1
    await house.publish("v2")
    await house.go_live("v2")
    await house.versions.wait_live("v2", 10)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"other"), "file_digest"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "missing_file"),
        (lambda folder: (folder / "extra").write_bytes(b""), "extra_file"),
    ],
)
async def test_changed_files_are_refused(house: House, spoil: Callable[[Path], object], reason: str) -> None:
    record = await house.publish("v1")
    spoil(house.config.artifact_root / record.path)
    with pytest.raises(AdapterRefused) as refused:
        await answering(house.versions, "v1")
    assert refused.value.reason == reason
    assert not house.engine.loaded


async def test_an_adapter_of_another_base_is_refused(house: House) -> None:
    await house.publish("v1", base_digest="0" * 64)
    with pytest.raises(AdapterRefused) as refused:
        await answering(house.versions, "v1")
    assert refused.value.reason == "base_digest"


async def test_a_server_starts_on_the_version_before_a_refused_one(house: House) -> None:
    for name in ("v1", "bad"):
        await house.publish(name, **({"tensors": nan} if name == "bad" else {}))
    other = Versions(CountingEngine(3), house.registry, house.config)
    await house.go_live("v1")
    await house.versions.wait_live("v1", 10)
    await house.go_live("bad")
    await other.start()
    assert other.live == "v1"


async def test_a_server_starts_on_the_version_before_one_whose_record_is_corrupt(house: House) -> None:
    for name in ("v1", "v2"):
        await house.publish(name)
        await house.go_live(name)
        await house.versions.wait_live(name, 10)
    await house.store.call("HSET", house.store.keys.versions, "v2", b"rotten")
    other = Versions(CountingEngine(3), house.registry, house.config)
    await other.start()
    assert other.live == "v1"
    await house.versions.wait_live("v1", 10)


async def test_a_server_starts_on_the_live_version(house: House) -> None:
    await house.publish("v1")
    await house.go_live("v1")
    other = Versions(CountingEngine(3), house.registry, house.config)
    await other.start()
    assert other.live == "v1"


async def test_many_callers_of_one_version_load_it_once(house: House) -> None:
    await house.publish("v1")
    found = await asyncio.gather(*(answering(house.versions, "v1") for _ in range(20)))
    assert {weights.name for weights in found} == {"v1"}
    assert house.engine.begun == ["v1"]


async def test_a_caller_who_leaves_does_not_end_the_load(house: House, until: Until) -> None:
    await house.publish("v1")
    house.engine.gate.clear()
    leaves = asyncio.create_task(answering(house.versions, "v1"))
    stays = asyncio.create_task(answering(house.versions, "v1"))
    await until(lambda: house.engine.begun == ["v1"])
    leaves.cancel()
    await asyncio.wait((leaves,))
    house.engine.gate.set()
    assert (await stays).name == "v1"


async def test_a_failed_load_is_tried_again_by_the_next_caller(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.publish("v1")

    async def fail(weights: Weights) -> None:
        raise AdapterRefused("engine", "not today")

    with monkeypatch.context() as patch:
        patch.setattr(house.engine, "load", fail)
        with pytest.raises(AdapterRefused, match="not today"):
            await answering(house.versions, "v1")
    assert (await answering(house.versions, "v1")).name == "v1"


async def test_the_one_longest_unused_makes_way(house: House) -> None:
    records = {name: await house.publish(name) for name in ("v1", "v2", "v3", "v4")}
    for name in ("v1", "v2", "v3"):
        await answering(house.versions, name)
    await answering(house.versions, "v1")
    await answering(house.versions, "v4")
    assert house.engine.unloaded == [records["v2"].adapter_id]
    assert set(house.engine.loaded) == {records[name].adapter_id for name in ("v1", "v3", "v4")}
    assert (await answering(house.versions, "v2")).name == "v2", "and comes back"


async def test_live_previous_and_used_versions_keep_their_places(house: House) -> None:
    for name in ("v1", "v2", "v3", "v4"):
        await house.publish(name)
    for name in ("v1", "v2"):
        await house.go_live(name)
        await house.versions.wait_live(name, 10)
    async with house.versions.use("v3"):
        with pytest.raises(Overloaded):
            await answering(house.versions, "v4")
    assert (await answering(house.versions, "v4")).name == "v4", "v3 makes way once nobody uses it"
    assert {weights.name for weights in house.engine.loaded.values()} == {"v1", "v2", "v4"}


async def test_a_promotion_waits_until_there_is_a_place(house: House, until: Until) -> None:
    for name in ("v1", "v2", "v3", "v4"):
        await house.publish(name)
    async with house.versions.use("v1"), house.versions.use("v2"), house.versions.use("v3"):
        await house.go_live("v4")
        with pytest.raises(TimeoutError):
            await house.versions.wait_live("v4", 0.3)
        assert (await house.registry.live()).name == "v4", "a full house is no reason to take it back"
    await house.versions.wait_live("v4", 10)


async def test_unknown_versions(house: House) -> None:
    with pytest.raises(NotFound):
        await answering(house.versions, "v1")


async def test_rejected_versions_answer_nobody_even_where_they_are_loaded(house: House, until: Until) -> None:
    await house.publish("v1")
    await house.publish("v2")
    await answering(house.versions, "v1")
    for name in ("v1", "v2"):
        await house.registry.set_state(name, pb.VERSION_STATE_REJECTED, ["too curt"])
    await until(lambda: house.versions._places["v1"].state == pb.VERSION_STATE_REJECTED)
    for name in ("v1", "v2"):
        with pytest.raises(InvalidInput, match="rejected"):
            await answering(house.versions, name)


async def test_training_versions_are_for_the_learner(house: House) -> None:
    await house.publish("v1", pb.VERSION_STATE_TRAINING)
    with pytest.raises(InvalidInput, match="training"):
        await answering(house.versions, "v1")
    async with house.versions.use("v1", Reach.LEARNER) as weights:
        assert weights.name == "v1"
    with pytest.raises(InvalidInput, match="training"):
        await answering(house.versions, "v1")
    await house.registry.set_state("v1", pb.VERSION_STATE_CANDIDATE)
    assert (await answering(house.versions, "v1")).name == "v1", "at once, before the news has come"


async def test_a_loaded_version_answers_while_the_store_is_away(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.publish("v1")
    await answering(house.versions, "v1")

    async def away(*args: object) -> None:
        raise StoreUnavailable("Redis is away")

    monkeypatch.setattr(house.registry, "get", away)
    assert (await answering(house.versions, "v1")).name == "v1"
    assert (await answering(house.versions)).name == "base"
    with pytest.raises(StoreUnavailable):
        await answering(house.versions, "v2")


async def test_streams_go_on_while_files_are_verified(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.publish("v1")
    released, verify = threading.Event(), server.versions.adapters.verify

    def slow(*args: Any) -> None:
        assert released.wait(10), "the event loop stood still"
        verify(*args)

    monkeypatch.setattr(server.versions.adapters, "verify", slow)
    loading = asyncio.create_task(answering(house.versions, "v1"))
    prompt = house.engine.render([("user", "Hi")])
    async with house.versions.use() as weights:
        sampling = server.engine.SamplingSpec(1000, 1.0, 1.0, (), 1)
        async for chunk in house.engine.generate("r", prompt, sampling, 1, weights):
            last = chunk
    assert last.finish
    assert not loading.done()
    released.set()
    assert (await loading).name == "v1"


async def test_following_ends_with_the_engine(house: House) -> None:
    await house.publish("v1")
    other = Versions(house.engine, house.registry, house.config)
    await other.start()
    house.engine.die()
    await house.go_live("v1")
    with pytest.raises(EngineDead):
        await other.follow()


async def test_merged_weights_do_not_wait_for_who_began_with_others(house: House) -> None:
    """Running answers go on under what becomes live, so that no number of swaps fills the places."""
    house.engine.one_version = True
    async with contextlib.AsyncExitStack() as running:
        for number in range(5):  # of three places
            await house.publish(f"v{number}")
            await house.go_live(f"v{number}")
            await house.versions.wait_live(f"v{number}", 10)
            await running.enter_async_context(house.versions.use())
        with pytest.raises(NotReady, match="not live"):
            await running.enter_async_context(house.versions.use("v0"))


async def put_on_trial(house: House, name: str) -> None:
    """As a cycle's commit does."""
    lease = Lease(house.store, "learner", 60)
    assert await lease.acquire()
    live = (await house.registry.live()).name
    batch = await VoteStream(house.store).freeze(lease, f"cycle-{name}", live, 1, 100)
    record = pb.CycleRecord(batch=batch, outcome="on_trial", version=name, reasons=["it passed"])
    await house.registry.commit_cycle(lease, record, name, trial=True)
    await lease.release()


async def test_a_canary_answers_its_share_of_conversations_each_to_its_end(house: House, until: Until) -> None:
    await house.publish("v1")
    people = [f"person {i}".encode() for i in range(2000)]
    assert {house.versions.choose(person) for person in people} == {None}
    await put_on_trial(house, "v1")
    await until(lambda: house.versions.canary == "v1")
    chosen = [house.versions.choose(person) for person in people]
    assert 320 < chosen.count("v1") < 480
    assert [house.versions.choose(person) for person in people] == chosen
    assert (await answering(house.versions, "v1")).name == "v1"
    assert house.versions.live == "base"


async def test_a_canary_is_the_same_peoples_on_another_server(house: House, until: Until) -> None:
    await house.publish("v1")
    await put_on_trial(house, "v1")
    other = Versions(CountingEngine(3), house.registry, house.config)
    await other.start()
    follow = asyncio.create_task(other.follow())
    await until(lambda: house.versions.canary == other.canary == "v1")
    people = [f"person {i}".encode() for i in range(200)]
    assert [other.choose(person) for person in people] == [house.versions.choose(person) for person in people]
    follow.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await follow


@pytest.mark.parametrize("promote", [True, False])
async def test_when_a_trial_ends_everybody_is_on_one_version(house: House, until: Until, promote: bool) -> None:
    await house.publish("v1")
    await put_on_trial(house, "v1")
    await until(lambda: house.versions.canary == "v1")
    await house.registry.end_trial("v1", "enough", promote=promote)
    await until(lambda: not house.versions.canary)
    await house.versions.wait_live("v1" if promote else "base", 10)
    assert house.versions.choose(b"somebody") is None


async def test_a_canary_that_this_server_refuses_is_taken_back(house: House, until: Until) -> None:
    await house.publish("v1", tensors=nan)
    await put_on_trial(house, "v1")

    async def taken_back() -> bool:
        return (await house.registry.get("v1")).state == pb.VERSION_STATE_ROLLED_BACK

    await eventually(taken_back, 60)
    assert "a server refused it" in (await house.registry.get("v1")).reasons[0]
    await until(lambda: house.versions._trial == "")
    assert house.versions.choose(b"somebody") is None
