"""The judge on a real store: which votes it counts, and what it does."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from learner.canary import Judge
from thumbwheel import config
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.opinion import verdict
from thumbwheel.records import now, response_id
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb


class House:
    """A registry with v1 made by a cycle, and people who ask and rate."""

    def __init__(self, store: Store) -> None:
        self.registry = Registry(store)
        self.stream = VoteStream(store)
        self.turns = TurnLog(store, config.TurnLog())
        self.feedback = FeedbackLog(store, config.Feedback())
        self.lease = Lease(store, "test", 60)
        self._votes = 0

    def judge(self, **settings: float) -> Judge:
        release = config.Release.model_validate(settings)
        return Judge(self.registry, self.stream, self.turns, self.feedback, release)

    async def release(self, *, trial: bool) -> None:
        assert await self.lease.acquire()
        await self.registry.register(pb.VersionRecord(name="v1", state=pb.VERSION_STATE_CANDIDATE, parent="base"))
        batch = await self.stream.freeze(self.lease, "cycle-1", "base", 1, 10_000)
        cycle = pb.CycleRecord(batch=batch, outcome="on_trial" if trial else "released", version="v1")
        await self.registry.commit_cycle(self.lease, cycle, "v1", trial=trial)

    async def vote(self, version: str, up: bool, rater: str = "", pinned: bool = False) -> None:
        self._votes += 1
        turn_id, rater = f"t{self._votes}", rater or f"rater {self._votes}"
        turn = pb.TurnRecord(turn_id=turn_id, owner=rater, created_at=now(), pinned=pinned)
        span = pb.VersionSpan(version=version)
        response = pb.ResponseRecord(response_id=response_id(turn_id, 0), token_ids=[1], spans=[span])
        await self.turns.append(turn, response)
        event = pb.VoteEvent(
            turn_id=turn_id, response_id=response.response_id, rater=rater, kind=pb.VOTE_KIND_THUMB,
            thumb=pb.THUMB_UP if up else pb.THUMB_DOWN, created_at=now(),
        )  # fmt: skip
        await self.feedback.append(event, f"key {self._votes}")

    async def crowd(self, votes: int, canary_good: float, seed: int = 1) -> None:
        """One in three on v1; the base is liked by 3 of 4."""
        draw = random.Random(seed)
        for number in range(votes):
            canary = number % 3 == 0
            await self.vote("v1" if canary else "base", draw.random() < (canary_good if canary else 0.75))


@pytest.fixture
async def house(redis_url: str) -> AsyncIterator[House]:
    store = await Store.open(redis_url, "test")
    yield House(store)
    await store.close()


async def test_nothing_to_judge(house: House) -> None:
    assert not await house.judge().look()


async def test_a_canary_that_people_like_less_is_taken_back(house: House) -> None:
    await house.release(trial=True)
    judge = house.judge()
    assert await judge.look()
    await house.crowd(150, canary_good=0.1)
    assert not await judge.look()
    assert await house.registry.canary() is None
    record = await house.registry.get("v1")
    assert record.state == pb.VERSION_STATE_ROLLED_BACK
    assert "liked less" in record.reasons[0]
    assert not await judge.look()


async def test_a_canary_that_people_like_goes_live_after_enough_ratings(house: House) -> None:
    await house.release(trial=True)
    judge = house.judge(ratings=40)
    await house.crowd(60, canary_good=0.9)
    assert await judge.look()
    canary = await house.registry.canary()
    assert canary is not None
    assert canary.metrics["trial_raters"] == 20
    await house.crowd(60, canary_good=0.9, seed=2)
    assert not await judge.look()
    assert (await house.registry.live()).name == "v1"


async def test_a_trial_without_votes_ends_in_time(house: House) -> None:
    await house.release(trial=True)
    assert not await house.judge(max_hours=1e-9).look()
    assert (await house.registry.live()).name == "v1"


async def test_who_votes_a_hundred_times_counts_once_and_who_chose_the_version_not_at_all(house: House) -> None:
    await house.release(trial=True)
    judge = house.judge()
    for _ in range(30):
        await house.vote("base", up=True)
        await house.vote("v1", up=False, rater="a foe")
        await house.vote("v1", up=False, pinned=True)
    assert await judge.look()
    assert (await house.registry.get("v1")).metrics["trial_raters"] == 1


async def test_another_learner_comes_to_the_same_judgement(house: House) -> None:
    await house.release(trial=True)
    first, figures = house.judge(), []
    for seed in (1, 2):
        await house.crowd(30, canary_good=0.6, seed=seed)
        assert await first.look()
    for judge in (first, house.judge()):
        assert await judge.look()
        figures.append((await house.registry.get("v1")).metrics["trial_doubt"])
    assert figures[0] == figures[1]


async def test_answers_three_times_as_long_are_taken_back_without_a_vote(house: House) -> None:
    await house.release(trial=True)
    for number in range(200):
        version = "v1" if number % 2 else "base"
        turn = pb.TurnRecord(turn_id=f"t{number}", owner=f"rater {number}", created_at=now())
        await house.turns.append(
            turn,
            pb.ResponseRecord(
                response_id=response_id(turn.turn_id, 0),
                token_ids=[1] * (number % 7 + (60 if number % 2 else 20)),
                finish_reason=pb.FINISH_REASON_STOP,
                spans=[pb.VersionSpan(version=version)],
                finished_at=turn.created_at,
            ),
        )
    assert not await house.judge().look()
    record = await house.registry.get("v1")
    assert record.state == pb.VERSION_STATE_ROLLED_BACK
    assert "length" in record.reasons[0]


async def test_an_operator_who_is_faster_wins(house: House) -> None:
    await house.release(trial=True)
    judge = house.judge()
    await house.crowd(150, canary_good=0.1)
    await house.registry.promote("v1", "I like it")
    assert not await judge.look()
    assert (await house.registry.live()).name == "v1"


async def test_after_a_direct_release_the_votes_before_it_are_the_control(house: House) -> None:
    for number in range(120):
        await house.vote("base", up=number % 4 != 0)
    await house.release(trial=False)
    judge = house.judge()
    assert not await judge.look()
    assert (await house.registry.live()).name == "v1"
    for number in range(80):
        await house.vote("v1", up=number % 10 == 0)
    assert not await judge.look()
    assert (await house.registry.live()).name == "base"
    assert "before its release" in (await house.registry.get("v1")).reasons[0]


def test_what_counts_as_good() -> None:
    assert verdict(pb.VoteEvent(thumb=pb.THUMB_UP)) is True
    assert verdict(pb.VoteEvent(stars=3)) is False
    assert verdict(pb.VoteEvent(edit="better")) is None
    assert verdict(pb.VoteEvent(retracted=True)) is None
    assert verdict(pb.VoteEvent(thumb=pb.THUMB_UP, imported=True)) is None
