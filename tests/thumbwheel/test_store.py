from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

from thumbwheel import config
from thumbwheel.credentials import Credentials
from thumbwheel.errors import SetupError, StoreUnavailable
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.lease import Lease
from thumbwheel.registry import Registry
from thumbwheel.secret_files import write_secret
from thumbwheel.store import ANSWER_SECONDS, Durability, Store
from thumbwheel.turn_log import TurnLog
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb


async def test_a_store_that_is_not_there_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="does not answer"):
        await Store.open(f"unix://{tmp_path}/nobody.sock", "test")


@pytest.mark.parametrize("url", ["http://localhost", "redis://localhost:port"])
async def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(SetupError, match="not valid"):
        await Store.open(url, "test")


@asynccontextmanager
async def scripted_server(version: str, loading: int = 0) -> AsyncIterator[str]:
    """The URL of something that answers what `open` asks, the first `loading` reads with LOADING."""
    info = f"# Server\r\nredis_version:{version}\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal loading
        while word := (await reader.readline()).strip().upper():
            if word == b"CLIENT":
                writer.write(b"+OK\r\n")
            elif word == b"GET":
                writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" if loading > 0 else b"$-1\r\n")
                loading -= 1
            elif word == b"INFO":
                writer.write(b"$%d\r\n%s\r\n" % (len(info), info))
            elif word == b"COMMAND":
                writer.write(b"*1\r\n*-1\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


async def test_an_old_server_is_refused() -> None:
    async with scripted_server("6.2.14") as url:
        with pytest.raises(SetupError, match=r"6\.2\.14 is too old"):
            await Store.open(url, "test")


async def test_opening_waits_for_a_server_that_reads_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted_server("7.2.4", loading=5) as url:
        store = await Store.open(url, "test")
        await store.close()
    monkeypatch.setattr("thumbwheel.store.LOADING_SECONDS", 0.2)
    async with scripted_server("7.2.4", loading=1000) as url:
        with pytest.raises(SetupError, match="loading"):
            await Store.open(url, "test")


async def test_a_durable_server(store: Store) -> None:
    assert await store.durability() == Durability("always", persistent=True, evicts=False, wait_aof=False)
    assert (await store.durability()).durable


@pytest.mark.parametrize(
    ("fsync", "expected"),
    [("no", Durability("no", True, False, False)), ("off", Durability("off", False, False, False))],
)
async def test_weaker_servers_say_so(weak: Callable[[str], Any], fsync: str, expected: Durability) -> None:
    _, store = await weak(fsync)
    assert await store.durability() == expected
    assert not expected.durable


@pytest.mark.parametrize(
    ("server", "durable"),
    [
        ({"redis_version": "8.2.3"}, True),
        ({"redis_version": "7.2.4"}, False),
        ({"redis_version": "8.0.0", "valkey_version": "9.1.2"}, False),
    ],
)
async def test_syncing_every_second_is_durable_where_waitaof_waits(
    weak: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, server: dict[str, str], durable: bool
) -> None:
    _, store = await weak("everysec")
    info = store._info

    async def described(section: str) -> dict[str, str]:
        return server if section == "server" else await info(section)

    monkeypatch.setattr(store, "_info", described)
    assert (await store.durability()).durable is durable


async def test_a_store_that_evicts_is_not_durable(own_redis: Any, own_store: Store) -> None:
    own_redis.command("CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lru")
    found = await own_store.durability()
    assert found.evicts
    assert not found.durable


async def test_votes_wait_for_the_disk_of_a_server_that_syncs_every_second(
    weak: Callable[[str], Any], make: Any
) -> None:
    server, store = await weak("everysec")
    await make.vote(TurnLog(store, config.TurnLog()), FeedbackLog(store, config.Feedback()), 1)
    assert server.command("INFO", "commandstats")["cmdstat_waitaof"]["calls"] > 0


async def test_a_vote_that_does_not_reach_the_disk_is_no_vote_yet(weak: Callable[[str], Any], make: Any) -> None:
    server, store = await weak("everysec")
    other = await Store.open(server.url, "test")
    turns, feedback = TurnLog(store, config.TurnLog()), FeedbackLog(store, config.Feedback())
    await make.log(turns, "t1")
    server.command("CONFIG", "SET", "appendfsync", "no")  # the disk never says that it is done
    vote = make.thumb("t1")
    with pytest.raises(StoreUnavailable, match="disk"):
        await feedback.append(vote, "key")
    with pytest.raises(StoreUnavailable, match="disk"):  # nor does trying again, on a connection that wrote nothing yet
        await FeedbackLog(other, config.Feedback()).append(vote, "key")
    await other.close()
    server.command("CONFIG", "SET", "appendfsync", "everysec")
    assert await feedback.append(vote, "key")
    assert await store.call("XLEN", store.keys.votes) == 1


async def test_a_wrong_command_is_not_an_absent_store(store: Store) -> None:
    with pytest.raises(ResponseError):
        await store.call("NO_SUCH_COMMAND")
    assert store.failures == 0


@pytest.mark.parametrize(
    "setting",
    [("maxmemory", "1"), ("min-replicas-to-write", "1")],
    ids=["full", "too few replicas"],
)
async def test_refused_writes_are_an_unavailable_store(
    own_redis: Any, own_store: Store, setting: tuple[str, str]
) -> None:
    own_redis.command("CONFIG", "SET", *setting)
    with pytest.raises(StoreUnavailable) as caught:
        await own_store.call("SET", own_store.keys.live, "x")
    assert caught.value.retry_after > 0
    assert own_store.failures == 1
    assert await own_store.call("GET", own_store.keys.live) is None


async def test_a_read_only_replica_is_an_unavailable_store(own_redis: Any, own_store: Store) -> None:
    own_redis.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable):
        await own_store.call("SET", own_store.keys.live, "x")


async def test_a_server_that_hangs_costs_no_more_than_the_limit(own_redis: Any, own_store: Store) -> None:
    own_redis.freeze()
    started = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await own_store.call("GET", own_store.keys.live)
    assert time.monotonic() - started < 2.5 * ANSWER_SECONDS
    own_redis.thaw()
    assert await own_store.call("GET", own_store.keys.live) is None


async def test_a_restart_costs_no_call(own_redis: Any, own_store: Store) -> None:
    """Connections of before the restart and forgotten scripts are mended on the way."""
    await own_store.script("release_lease", [own_store.keys.lease], ["x"])
    own_redis.kill()
    own_redis.start()
    assert await own_store.script("release_lease", [own_store.keys.lease], ["x"]) == 0
    assert own_store.failures == 0


async def test_a_patient_connection_outlasts_the_limit(store: Store) -> None:
    async with store.patient(ANSWER_SECONDS + 0.5) as patient:
        millis = int(1000 * (ANSWER_SECONDS + 0.2))
        assert await patient.call("XREAD", "BLOCK", millis, "STREAMS", store.keys.changes, "$") is None


async def test_a_cancelled_call_is_cancelled(store: Store) -> None:
    """Whatever moment it hits: a loop around the store must end when it is told to."""

    async def loop() -> None:
        while True:
            await store.call("GET", store.keys.live)
            await store.batch([("GET", store.keys.live), ("GET", store.keys.lease)])

    for steps in range(400):
        task = asyncio.create_task(loop())
        for _ in range(steps % 40):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, f"still running after being cancelled at step {steps % 40}"
        assert task.cancelled()


async def test_cancelled_calls_leak_no_connection(store: Store) -> None:
    async def read() -> None:
        await store.call("GET", store.keys.live)

    for round_ in range(20):
        tasks = [asyncio.create_task(read()) for _ in range(150)]
        for _ in range(round_ * 4):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(read() for _ in range(150)))
    assert store.failures == 0
    assert store._client.connection_pool.can_get_connection()
    assert not store._client.connection_pool._in_use_connections


async def test_a_user_with_no_more_rights_than_the_documents_say(own_redis: Any, tmp_path: Path, make: Any) -> None:
    """The rule is the one in docs/security.md; whoever changes what is asked of Redis must change it there."""
    text = " ".join((Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8").split())
    rule = re.search(r"`(ACL SETUSER thumbwheel on >PASSWORD .*?)`", text)
    assert rule is not None
    own_redis.command(*rule[1].replace("PASSWORD", "se/c:r@t%").split())
    secret = tmp_path / "password"
    write_secret(secret, "se/c:r@t%")
    url = own_redis.url.replace("unix://", "unix://thumbwheel@")
    with pytest.raises(SetupError, match="Redis"):
        await Store.open(url, "default")
    store = await Store.open(url, "default", str(secret))
    assert (await store.durability()).durable
    turns, feedback = TurnLog(store, config.TurnLog()), FeedbackLog(store, config.Feedback())
    await make.vote(turns, feedback, 3)
    assert len((await feedback.page(size=10))[0]) == 3
    lease = Lease(store, "learner", 60)
    assert await lease.acquire()
    batch = await VoteStream(store).freeze(lease, "cycle-1", "base", 1, 10)
    registry = Registry(store)
    await registry.register(pb.VersionRecord(name="v1", state=pb.VERSION_STATE_CANDIDATE, parent="base"))
    await registry.commit_cycle(lease, pb.CycleRecord(batch=batch, outcome="released", version="v1"), "v1")
    await VoteStream(store).trim()
    await turns.trim()
    await Credentials(store).make("ada", [pb.SCOPE_CHAT])
    async with aclosing(registry.changes()) as changes:
        assert (await anext(changes))[1] == "v1"
    with pytest.raises(ResponseError, match=r"(?i)no permissions"):
        await store.call("CONFIG", "SET", "appendfsync", "no")
    with pytest.raises(ResponseError, match=r"(?i)no permissions"):
        await store.call("GET", "somebody else's")
    await store.close()
