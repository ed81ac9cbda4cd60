"""Bearer keys: what is stored of them, what they open, and how they end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from thumbwheel import credentials as module
from thumbwheel.credentials import Credentials, KeyChecker, bearer
from thumbwheel.errors import InvalidInput, NotAuthenticated, NotFound, StoreUnavailable
from thumbwheel.store import Store
from thumbwheel_client.v1.record_pb2 import SCOPE_CHAT, SCOPE_METRICS, SCOPE_RATE, Limits


async def test_a_key_opens_what_it_was_made_for_and_its_secret_is_not_stored(store: Store) -> None:
    key, record = await Credentials(store).make("ada", [SCOPE_RATE, SCOPE_CHAT], limits=Limits(tokens_per_minute=5))
    found = await KeyChecker(store).check(key)
    assert found == record
    assert (found.user, found.tenant, list(found.scopes)) == ("ada", "ada", [SCOPE_CHAT, SCOPE_RATE])
    assert found.limits.tokens_per_minute == 5
    everything = b"".join(await store.call("HVALS", store.keys.credentials))
    assert key.rpartition("_")[2].encode() not in everything


@pytest.mark.parametrize("spoil", ["", "tw_", "x", "swap", "unknown", "case"])
async def test_what_is_no_key_of_this_store_is_refused(store: Store, spoil: str) -> None:
    key, _ = await Credentials(store).make("ada", [SCOPE_CHAT])
    wrong = {
        "swap": key[:-1] + ("A" if key[-1] != "A" else "B"),
        "unknown": "tw_000000000000" + key[15:],
        "case": key.upper(),
        "x": key + "x",
    }.get(spoil, spoil)
    with pytest.raises(NotAuthenticated):
        await KeyChecker(store).check(wrong)


async def refuses(checker: KeyChecker, key: str) -> bool:
    try:
        await checker.check(key)
    except NotAuthenticated:
        return True
    return False


async def test_a_revoked_key_ends_and_is_still_listed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_SECONDS", 0.0)
    made, checker = Credentials(store), KeyChecker(store)
    key, record = await made.make("ada", [SCOPE_CHAT])
    await checker.check(key)
    first = await made.revoke(record.key_id)
    assert await made.revoke(record.key_id) == first, "once more changes nothing"
    with pytest.raises(NotAuthenticated, match="revoked"):
        await checker.check(key)
    assert [kept.key_id for kept in await made.all()] == [record.key_id]
    with pytest.raises(NotFound):
        await made.revoke("000000000000")


async def test_a_revoked_key_may_work_for_as_long_as_it_is_remembered(store: Store) -> None:
    made, checker = Credentials(store), KeyChecker(store)
    key, record = await made.make("ada", [SCOPE_CHAT])
    await checker.check(key)
    await made.revoke(record.key_id)
    began = time.monotonic()
    while not await refuses(checker, key):  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.05)
    assert time.monotonic() - began < module.CACHE_SECONDS + 1


async def test_an_expired_key_ends(store: Store) -> None:
    key, _ = await Credentials(store).make("ada", [SCOPE_CHAT], days=1e-9)
    with pytest.raises(NotAuthenticated, match="expired"):
        await KeyChecker(store).check(key)
    key, record = await Credentials(store).make("ada", [SCOPE_CHAT], days=1)
    assert record.expires_at.seconds - record.created_at.seconds == 86_400
    await KeyChecker(store).check(key)


@pytest.mark.parametrize(("user", "tenant"), [("", ""), ("a\n", ""), ("a" * 129, ""), ("ada", "\0")])
async def test_names_that_are_none(store: Store, user: str, tenant: str) -> None:
    with pytest.raises(InvalidInput):
        await Credentials(store).make(user, [SCOPE_CHAT], tenant=tenant)
    with pytest.raises(InvalidInput, match="scope"):
        await Credentials(store).make("ada", [])


async def test_with_the_store_away_known_keys_work_and_others_wait(own_store: Store, own_redis: Any) -> None:
    made = Credentials(own_store)
    known, _ = await made.make("ada", [SCOPE_CHAT])
    other, _ = await made.make("bob", [SCOPE_CHAT])
    checker = KeyChecker(own_store)
    await checker.check(known)
    own_redis.kill()
    await asyncio.sleep(module.CACHE_SECONDS)  # until the memory alone would no longer do
    assert (await checker.check(known)).user == "ada"
    with pytest.raises(NotAuthenticated):
        await checker.check(known[:-1] + ("A" if known[-1] != "A" else "B"))
    with pytest.raises(StoreUnavailable):
        await checker.check(other)


async def test_a_record_that_was_changed_by_hand_opens_nothing(store: Store) -> None:
    key, record = await Credentials(store).make("ada", [SCOPE_CHAT])
    await store.call("HSET", store.keys.credentials, record.key_id, b"\x01nonsense")
    with pytest.raises(NotAuthenticated):
        await KeyChecker(store).check(key)


async def test_a_scope_asked_for_over_http(store: Store) -> None:
    key, _ = await Credentials(store).make("prometheus", [SCOPE_METRICS])
    checker = KeyChecker(store)
    assert await checker.allows(f"Bearer {key}", SCOPE_METRICS)
    assert not await checker.allows(f"Bearer {key}", SCOPE_CHAT)
    for header in ("", key, f"Basic {key}", "Bearer ", "Bearer tw_x"):
        assert not await checker.allows(header, SCOPE_METRICS)


def test_a_bearer_header() -> None:
    assert bearer("Bearer abc") == bearer("bearer  abc ") == "abc"
