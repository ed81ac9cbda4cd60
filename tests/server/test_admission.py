"""Who may sample: people in order of arrival, the learner in what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from server.admission import Admission
from thumbwheel import config
from thumbwheel.errors import InvalidInput, Overloaded

Until = Callable[..., Awaitable[None]]


def admission(places: int = 4, queue: int = 4, rollouts: int = 3, busy: int = 1) -> Admission:
    return Admission(
        config.Server(max_sequences=places, max_queue=queue, rollout_sequences=rollouts, rollout_sequences_busy=busy)
    )


class Samples:
    """Rollout samples that run until they are told to end: one per `release` of `end`."""

    def __init__(self, places: Admission) -> None:
        self.running = 0
        self.started = 0
        self.end = asyncio.Semaphore(0)
        self._places = places

    def finish(self, count: int) -> None:
        for _ in range(count):
            self.end.release()

    def add(self) -> asyncio.Task[str | None]:
        return asyncio.create_task(self._places.rollout(self._sample()))

    async def _sample(self) -> str:
        self.running += 1
        self.started += 1
        try:
            await self.end.acquire()
            return "done"
        finally:
            self.running -= 1


async def test_a_free_place_is_given_at_once() -> None:
    places = admission(places=3)
    with await places.chat(2), await places.chat(1):
        assert places.queued == 0


async def test_the_queue_is_first_come_first_served_even_for_large_turns(until: Until) -> None:
    places, order = admission(places=4, queue=8), []
    first = await places.chat(3)

    async def turn(name: str, count: int) -> None:
        with await places.chat(count):
            order.append(name)

    large = asyncio.create_task(turn("large", 4))
    await until(lambda: places.queued == 4)
    small = asyncio.create_task(turn("small", 1))  # would fit, and must not overtake
    await until(lambda: places.queued == 5)
    first.give_back_one()
    assert order == []
    first.give_back_one()
    first.give_back_one()
    await asyncio.gather(large, small)
    assert order == ["large", "small"]


async def test_a_full_queue_refuses_and_says_when_to_come_again(until: Until) -> None:
    places = admission(places=1, queue=2)
    with await places.chat(1):
        waiting = [asyncio.create_task(places.chat(1)) for _ in range(2)]
        await until(lambda: places.queued == 2)
        with pytest.raises(Overloaded) as refusal:
            await places.chat(1)
        assert 0.5 <= refusal.value.retry_after <= 30
        assert places.queued == 2
    for task in waiting:
        with await task:
            pass


async def test_more_answers_than_places_are_refused_at_once() -> None:
    with pytest.raises(InvalidInput) as refusal:
        await admission(places=2).chat(3)
    assert refusal.value.field == "input.n"


async def test_who_leaves_the_queue_lets_the_next_one_in(until: Until) -> None:
    places = admission(places=2)
    holder = await places.chat(1)
    large = asyncio.create_task(places.chat(2))
    await until(lambda: places.queued == 2)
    small = asyncio.create_task(places.chat(1))
    await until(lambda: places.queued == 3)
    large.cancel()
    with await small:
        assert places.queued == 0
    holder.give_back_one()


async def test_a_place_granted_to_somebody_who_just_left_goes_on(until: Until) -> None:
    places = admission(places=1)
    holder = await places.chat(1)
    leaver = asyncio.create_task(places.chat(1))
    await until(lambda: places.queued == 1)
    holder.give_back_one()  # grants to `leaver`, whose task has not run yet
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    async with asyncio.timeout(1):
        with await places.chat(1):
            pass


async def test_rollouts_keep_to_their_share_and_to_less_while_somebody_chats(until: Until) -> None:
    places = admission(places=8, rollouts=3, busy=1)
    samples = Samples(places)
    tasks = [samples.add() for _ in range(6)]
    await until(lambda: samples.running == 3)
    with await places.chat(1):
        await until(lambda: samples.running == 1)
        assert [await task for task in tasks[1:3]] == [None, None], "the youngest give way at once"
        samples.finish(1)
        await until(lambda: samples.started == 4)
        assert samples.running == 1
    await until(lambda: samples.running == 3)
    samples.finish(3)
    assert await asyncio.gather(*tasks) == ["done", None, None, "done", "done", "done"]


async def test_rollouts_come_back_after_a_lull_not_between_two_questions(
    until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.admission.LULL", 60.0)
    places = admission(places=8, rollouts=3, busy=1)
    samples = Samples(places)
    tasks = [samples.add() for _ in range(5)]
    await until(lambda: samples.running == 3)
    for _ in range(3):
        with await places.chat(1):
            await until(lambda: samples.running == 1)
        for _ in range(10):  # turns of the loop: whoever were let in now would begin in the second of them
            await asyncio.sleep(0)
    assert samples.started == 3, "begun in vain"
    monkeypatch.setattr("server.admission.LULL", 0.01)
    with await places.chat(1):
        pass
    await until(lambda: samples.running == 3)
    samples.finish(3)
    assert await asyncio.gather(*tasks) == ["done", None, None, "done", "done"]


async def test_rollouts_never_start_while_a_chat_waits(until: Until) -> None:
    places = admission(places=2, rollouts=2, busy=2)
    samples = Samples(places)
    chat = await places.chat(2)
    waiting = asyncio.create_task(places.chat(2))
    await until(lambda: places.queued == 2)
    task = samples.add()
    chat.give_back_one()
    await asyncio.sleep(0)
    assert samples.started == 0
    chat.give_back_one()
    with await waiting:
        assert samples.started == 0
    samples.finish(3)
    assert await task == "done"


async def test_chat_takes_a_place_from_a_rollout_instead_of_waiting(until: Until) -> None:
    places = admission(places=3, rollouts=3, busy=3)
    samples = Samples(places)
    tasks = [samples.add() for _ in range(2)]
    await until(lambda: samples.running == 2)
    async with asyncio.timeout(1):
        chat = await places.chat(2)  # one place is free, one is a rollout's
    await until(lambda: samples.running == 1)
    assert await tasks[1] is None, "the youngest gives way"
    assert not tasks[0].done()
    with chat:
        samples.finish(3)
        assert await tasks[0] == "done"


async def test_rollouts_leave_a_place_free(until: Until) -> None:
    places = admission(places=3, rollouts=3)
    samples = Samples(places)
    tasks = [samples.add() for _ in range(3)]
    await until(lambda: samples.running == 2)
    with await places.chat(1):
        assert samples.running == 2
    samples.finish(3)
    assert await asyncio.gather(*tasks) == ["done"] * 3


async def test_a_cancelled_rollout_gives_its_place_back(until: Until) -> None:
    places = admission(places=2, rollouts=1)
    samples = Samples(places)
    running, waiting, last = samples.add(), samples.add(), samples.add()
    await until(lambda: samples.running == 1)
    waiting.cancel()
    running.cancel()
    await until(lambda: samples.started == 2)
    samples.finish(3)
    assert await last == "done"


async def test_an_error_of_a_sample_comes_out() -> None:
    async def broken() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await admission().rollout(broken())
