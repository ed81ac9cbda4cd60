"""The learner's sign of life."""

from __future__ import annotations

from thumbwheel import pulse
from thumbwheel.pulse import Pulse
from thumbwheel.store import Store


async def test_it_is_felt_until_it_lapses(store: Store) -> None:
    assert await pulse.felt(store) is None
    told = Pulse("training", 0.5, 1_800_000_000.25, 64)
    await pulse.beat(store, told)
    assert await pulse.felt(store) == told
    left = await store.call("PTTL", store.keys.pulse)
    assert pulse.BEAT_SECONDS * 1000 < left <= pulse.LAPSE_MS


async def test_what_another_version_tells_is_not_guessed_at(store: Store) -> None:
    for told in ("{", "[]", '{"stage": "training", "mood": "good"}'):
        await store.call("SET", store.keys.pulse, told)
        assert await pulse.felt(store) is None
