from __future__ import annotations

import pytest

from thumbwheel.errors import InvalidInput
from thumbwheel.store import Store
from thumbwheel.time_index import Place, newest_first


async def fill(store: Store, places: list[Place]) -> str:
    for place in places:
        await store.call("ZADD", store.keys.turns, place.millis, place.turn_id)
    return store.keys.turns


async def test_newest_first_in_batches(store: Store) -> None:
    places = [Place(1_795_449_063_413 + i // 3, f"t{i:03}") for i in range(50)]
    key = await fill(store, places)
    assert [place async for place in newest_first(store, key, batch=7)] == places[::-1]


async def test_more_turns_in_a_millisecond_than_in_a_batch(store: Store) -> None:
    places = [Place(5, f"t{i:03}") for i in range(40)]
    key = await fill(store, places)
    assert [place async for place in newest_first(store, key, batch=3)] == places[::-1]


async def test_goes_on_from_a_place_that_is_gone(store: Store) -> None:
    places = [Place(i, f"t{i}") for i in range(9)]
    key = await fill(store, places)
    await store.call("ZREM", key, "t5")
    assert [place.turn_id async for place in newest_first(store, key, Place(5, "t5"))] == ["t4", "t3", "t2", "t1", "t0"]


async def test_an_empty_index(store: Store) -> None:
    assert [place async for place in newest_first(store, store.keys.turns)] == []


def test_a_token_comes_back() -> None:
    place = Place(1_795_449_063_413, "t.1")
    assert Place.of_token(place.token()) == place


@pytest.mark.parametrize("token", ["x", "1", "1.", ".t", "-1.t", "¹.t", "1e3.t"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        Place.of_token(token)
