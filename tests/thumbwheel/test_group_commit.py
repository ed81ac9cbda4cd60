from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from thumbwheel import config
from thumbwheel.errors import Conflict, NotFound, StoreUnavailable
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.group_commit import LARGEST
from thumbwheel.store import ANSWER_SECONDS, Store
from thumbwheel.turn_log import TurnLog


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the groups that went to the store."""
    sizes: list[int] = []
    scripts = Store.scripts

    async def counted(self: Store, name: str, calls: Any, *, durable: bool = False) -> list[Any]:
        if name == "vote":
            sizes.append(len(calls))
        return await scripts(self, name, calls, durable=durable)

    monkeypatch.setattr(Store, "scripts", counted)
    return sizes


async def test_a_lonely_vote_goes_at_once_and_the_crowd_goes_together(
    turns: TurnLog, feedback: FeedbackLog, make: Any, groups: list[int]
) -> None:
    await make.log(turns, "t1")
    first = asyncio.create_task(feedback.append(make.thumb("t1"), "first"))
    await asyncio.sleep(0)
    crowd = LARGEST + 5
    votes = [feedback.append(make.thumb("t1", up=i % 2 == 0), f"key {i}") for i in range(crowd)]
    kept = await asyncio.gather(first, *votes)
    assert groups == [1, LARGEST, 5]
    assert len({vote.event_id for vote in kept}) == crowd + 1


async def test_each_of_a_group_hears_its_own_verdict(
    turns: TurnLog, feedback: FeedbackLog, make: Any, groups: list[int]
) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "used")
    verdicts = await asyncio.gather(
        feedback.append(make.thumb("t1"), "new"),
        feedback.append(make.thumb("t1", up=False), "used"),
        feedback.append(make.thumb("nowhere"), "other"),
        return_exceptions=True,
    )
    assert groups == [1, 3]
    assert [type(verdict) for verdict in verdicts[1:]] == [Conflict, NotFound]
    assert verdicts[0].event_id  # type: ignore[union-attr]


async def test_a_caller_that_leaves_takes_nothing_back_and_holds_nobody_up(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    leaving = asyncio.create_task(feedback.append(make.thumb("t1"), "leaving"))
    staying = asyncio.create_task(feedback.append(make.thumb("t1", up=False), "staying"))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).event_id
    assert await store.call("XLEN", store.keys.votes) == 2


async def test_scripts_that_the_server_forgot_are_taught_again(
    store: Store, turns: TurnLog, feedback: FeedbackLog, make: Any
) -> None:
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "before")
    await store.call("SCRIPT", "FLUSH")
    kept = await asyncio.gather(*(feedback.append(make.thumb("t1"), f"key {i}") for i in range(3)))
    assert len({vote.event_id for vote in kept}) == 3
    assert await store.call("XLEN", store.keys.votes) == 4


async def test_with_the_store_frozen_those_behind_wait_no_longer_than_those_before(
    own_redis: Any, own_store: Store, make: Any
) -> None:
    turns, feedback = TurnLog(own_store, config.TurnLog()), FeedbackLog(own_store, config.Feedback())
    await make.log(turns, "t1")
    own_redis.freeze()
    began = time.monotonic()
    votes = [asyncio.create_task(feedback.append(make.thumb("t1"), f"key {i}")) for i in range(2 * LARGEST)]
    heard = await asyncio.gather(*votes, return_exceptions=True)
    assert {type(verdict) for verdict in heard} == {StoreUnavailable}
    assert time.monotonic() - began < 2 * ANSWER_SECONDS
    own_redis.thaw()
    assert await feedback.append(make.thumb("t1"), "key 0")


async def test_a_group_waits_for_a_slow_disk_once(weak: Callable[[str], Any], make: Any) -> None:
    _, store = await weak("everysec")
    turns, feedback = TurnLog(store, config.TurnLog()), FeedbackLog(store, config.Feedback())
    await make.log(turns, "t1")
    await feedback.append(make.thumb("t1"), "teaches the script")
    await store.call("CONFIG", "RESETSTAT")
    kept = await asyncio.gather(*(feedback.append(make.thumb("t1"), f"key {i}") for i in range(50)))
    assert len({vote.event_id for vote in kept}) == 50
    stats = (await store.call("INFO", "commandstats")).decode()
    assert "cmdstat_waitaof:calls=1," in stats


async def test_no_caller_is_left_waiting_by_a_command_that_is_not_allowed(
    weak: Callable[[str], Any], make: Any
) -> None:
    server, store = await weak("everysec")
    turns, feedback = TurnLog(store, config.TurnLog()), FeedbackLog(store, config.Feedback())
    await make.log(turns, "t1")
    server.command("ACL", "SETUSER", "default", "-waitaof")
    async with asyncio.timeout(5):
        heard = await asyncio.gather(
            *(feedback.append(make.thumb("t1"), f"key {i}") for i in range(3)), return_exceptions=True
        )
    assert all("waitaof" in str(verdict) for verdict in heard)
