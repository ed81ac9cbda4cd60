"""The store away, paused, full, on a full disk, without power; connections cut in the middle of a reply."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.faults.world import MIN_VOTES, RECOVERY, World, audit, failing_disk, lose_power, nothing_lost, world
from tests.redis_process import RedisProcess
from thumbwheel.config import Feedback, TurnLog
from thumbwheel.errors import SetupError, StoreUnavailable
from thumbwheel.feedback_log import FeedbackLog
from thumbwheel.records import now, response_id
from thumbwheel.store import Store
from thumbwheel.turn_log import TurnLog as Turns
from thumbwheel.vote_stream import VoteStream
from thumbwheel_client.v1 import record_pb2 as pb

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the failing disk is written in C")


async def check_trouble(here: World, begin: Callable[[], Any], end: Callable[[], Any], seconds: float) -> None:
    """While it lasts nobody is told OK, and chat goes on; after it votes flow again within 10 s."""
    people, unanswered = here.people, here.people.unanswered
    async with people.about():
        await people.rated(10)
        begin()
        await asyncio.sleep(1)  # calls that were answered before it began may still be on their way
        told, answers, refused = len(people.acknowledged), people.answers, people.refused
        await asyncio.sleep(seconds)
        print(f"{people.answers - answers} chats, {people.refused - refused} refused votes in {seconds} s")
        assert len(people.acknowledged) == told, "somebody was told OK"
        assert people.refused > refused, "nobody voted"
        assert people.answers > answers + seconds, "chat did not go on"
        end()
        await people.rated(1, RECOVERY)
        await people.rated(MIN_VOTES)
    assert people.unanswered == unanswered
    await nothing_lost(here)


# A vote takes 4 s to be refused: its answer waits 2 s for the store before it goes to memory, then so does the vote.
@pytest.mark.parametrize("seconds", [6, pytest.param(30, marks=pytest.mark.slow)])
async def test_a_paused_store(here: World, seconds: float) -> None:
    await check_trouble(here, here.redis.freeze, here.redis.thaw, seconds)


@pytest.mark.slow
async def test_a_store_that_is_away(here: World) -> None:
    await check_trouble(here, here.redis.kill, here.redis.start, 5)


@pytest.mark.slow
async def test_a_full_store(here: World) -> None:
    await check_trouble(
        here,
        lambda: here.redis.command("CONFIG", "SET", "maxmemory", "1"),
        lambda: here.redis.command("CONFIG", "SET", "maxmemory", "0"),
        3,
    )


@pytest.mark.slow
@needs_compiler
async def test_a_full_disk(tmp_path: Path, tiny_model: Path) -> None:
    """Redis gives up by itself rather than say OK to what it cannot keep."""
    disk = failing_disk(tmp_path)
    full = Path(disk["THUMBWHEEL_DISK_FULL"])
    async with world(tmp_path, tiny_model, disk=disk) as here:

        def mend() -> None:
            full.unlink()
            if not here.redis.running:
                here.redis.start()

        await check_trouble(here, full.touch, mend, 3)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(("fsync", "lacking"), [("always", ()), ("everysec", ("WAITAOF",))])
async def test_a_power_loss_takes_no_acknowledged_vote(
    tmp_path: Path, tiny_model: Path, fsync: str, lacking: tuple[str, ...]
) -> None:
    """With everysec, and no WAITAOF to make up for it, it must take some, or this test would see nothing."""
    async with world(tmp_path, tiny_model, fsync=fsync, disk=failing_disk(tmp_path), lacking=lacking) as here:
        async with here.people.about():
            for _ in range(5):
                await here.people.rated(20)
                lose_power(here.redis)
                here.redis.start()
            await here.people.rated(MIN_VOTES)
        found = await audit(here)
        print(found)
        if fsync == "always":
            assert found.sound, found
        else:
            assert found.lost, "nothing was lost: the simulated power loss is none"


@asynccontextmanager
async def cutting(redis: RedisProcess, folder: Path, seed: int) -> AsyncIterator[str]:
    """URL of a way to Redis that breaks in the middle of about one reply in ten."""
    dice, socket = random.Random(seed), folder / "cut.sock"
    connections: list[asyncio.Task[None]] = []

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(asyncio.create_task(carry(reader, writer)))

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, out = await asyncio.open_unix_connection(str(redis.socket))

        async def forward() -> None:
            while data := await reader.read(1 << 16):
                out.write(data)
                await out.drain()
            out.write_eof()

        asking = asyncio.create_task(forward())
        with suppress(ConnectionError):
            while data := await there.read(1 << 16):
                cut = dice.random() < 0.1
                writer.write(data[: dice.randrange(len(data))] if cut else data)
                await writer.drain()
                if cut:
                    break
        asking.cancel()
        for end in (writer, out):
            end.close()
            with suppress(ConnectionError):
                await end.wait_closed()

    async with await asyncio.start_unix_server(connect, str(socket)):
        yield f"unix://{socket}"
        await asyncio.gather(*connections)


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
        with suppress(SetupError):
            return await Store.open(url, "test")
