"""The store paused, full, on a full disk, and connections that are cut in the middle of a reply."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import World, audit, failing_disk, world
from tests.processes import eventually
from tests.redis_process import RedisProcess
from thumbwheel.config import Feedback, TurnLog
from thumbwheel.errors import StoreUnavailable
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.records import now, response_id
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog as Turns
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

pytestmark = pytest.mark.slow


async def rated(here: World, more: int) -> None:
    """Waits until so many more votes are acknowledged."""
    goal = len(here.people.acknowledged) + more
    await eventually(lambda: len(here.people.acknowledged) >= goal, 60)


async def check_trouble(here: World, begin: Callable[[], Any], end: Callable[[], Any], seconds: float) -> None:
    """While it lasts nobody is told OK, and chat goes on; after it votes flow again within 10 s."""
    async with here.people.about():
        await rated(here, 20)
        begin()
        await asyncio.sleep(1)  # calls that were answered before it began may still be on their way
        before, chats = len(here.people.acknowledged), await answered(here)
        await asyncio.sleep(seconds)
        assert len(here.people.acknowledged) == before, "somebody was told OK"
        assert await answered(here) > chats, "chat did not go on"
        end()
        async with asyncio.timeout(10):
            await rated(here, 1)
        await rated(here, 20)
    assert here.people.unanswered == 0
    found = await audit(here.redis, here.people)
    assert found.sound, found


async def answered(here: World) -> float:
    """Chat calls that ended well, on both servers."""
    return sum(
        [
            await asyncio.to_thread(server.metric, "thumbwheel_requests_total", method="Chat", code="OK")
            for server in here.servers
        ]
    )


@pytest.mark.parametrize("seconds", [3, 30])
async def test_a_paused_store(tmp_path: Path, tiny_model: Path, seconds: float) -> None:
    async with world(tmp_path, tiny_model) as here:
        await check_trouble(here, here.redis.freeze, here.redis.thaw, seconds)


async def test_a_full_store(tmp_path: Path, tiny_model: Path) -> None:
    async with world(tmp_path, tiny_model) as here:
        await check_trouble(
            here,
            lambda: here.redis.command("CONFIG", "SET", "maxmemory", "1"),
            lambda: here.redis.command("CONFIG", "SET", "maxmemory", "0"),
            3,
        )


async def test_a_full_disk(tmp_path: Path, tiny_model: Path) -> None:
    """Redis gives up by itself rather than say OK to what it cannot keep."""
    full = Path(failing_disk(tmp_path)["THUMBWHEEL_DISK_FULL"])

    def mend() -> None:
        full.unlink()
        if not here.redis.running:
            here.redis.start()

    async with world(tmp_path, tiny_model) as here:
        await check_trouble(here, full.touch, mend, 3)


@asynccontextmanager
async def cutting(redis: RedisProcess, folder: Path, seed: int) -> AsyncIterator[str]:
    """URL of a way to Redis that breaks in the middle of about one reply in ten."""
    dice, socket = random.Random(seed), folder / "cut.sock"

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_unix_connection(str(redis.socket))

        async def forward() -> None:
            while data := await reader.read(1 << 16):
                out.write(data)
                await out.drain()

        asking = asyncio.create_task(forward())
        try:
            while data := await there.read(1 << 16):
                if dice.random() < 0.1:
                    writer.write(data[: dice.randrange(len(data))])
                    await writer.drain()
                    break
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            asking.cancel()
            writer.close()
            out.close()

    server = await asyncio.start_unix_server(connect, str(socket))
    async with server:
        yield f"unix://{socket}"


async def test_connections_cut_in_the_middle_of_a_reply(tmp_path: Path, own_redis: Any) -> None:
    """What was written and not acknowledged counts once when it is sent again."""
    plain = await Store.open(own_redis.url, "test")
    async with cutting(own_redis, tmp_path, seed=3) as url:
        store = await opened(url)
        turns, feedback = Turns(plain, TurnLog()), FeedbackLog(store, Feedback())
        acknowledged: dict[str, str] = {}
        for number in range(200):
            name = f"t{number}"
            turn = pb.TurnRecord(turn_id=name, owner="ann", created_at=now())
            await turns.append(turn, pb.ResponseRecord(response_id=response_id(name, 0)))
            vote = pb.VoteEvent(
                turn_id=name, response_id=response_id(name, 0), rater="ann", kind=pb.VOTE_KIND_THUMB, thumb=pb.THUMB_UP
            )
            while name not in acknowledged:
                try:
                    acknowledged[name] = (await feedback.append(vote, name)).event_id
                except StoreUnavailable:
                    continue
        await store.close()
    ids = [entry.decode() for entry, _ in await plain.call("XRANGE", plain.keys.votes, "-", "+")]
    assert store.failures > 0, "nothing was cut"
    assert sorted(acknowledged.values()) == sorted(ids)
    assert await VoteStream(plain).waiting() == 200
    await plain.close()


async def opened(url: str) -> Store:
    """Opening makes calls too, which may be cut."""
    while True:
        try:
            return await Store.open(url, "test")
        except Exception:  # noqa: BLE001 - whichever way it was cut
            await asyncio.sleep(0)
