"""SIGTERM under load, fifty times (once: tests/server/test_app.py): who is being answered is answered to the end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import grpc
import pytest
from grpc import aio

from tests.processes import eventually
from tests.rough.calls import story
from tests.rough.target import target
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc
from thumbwheel_client.v1 import record_pb2 as pb

STREAMS = 12
ENDS = (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)


async def streams(address: str, ends: Counter[str]) -> None:
    """One after the other, until the server takes no more."""
    async with aio.insecure_channel(address) as channel:
        chat = chat_pb2_grpc.ChatServiceStub(channel)
        while True:
            last = None
            try:
                async for event in chat.StreamChat(story(64)):
                    last = event
            except aio.AioRpcError as error:
                refused = last is None and error.code() is grpc.StatusCode.UNAVAILABLE
                ends["refused" if refused else f"{'cut' if last else 'not begun'}: {error.code().name}"] += 1
                return
            whole = last is not None and last.finish.reason in ENDS
            logged = whole and last is not None and last.finish.log_status == chat_pb2.LOG_STATUS_LOGGED
            ends["whole" if logged else f"not whole: {last}"] += 1


@pytest.mark.timeout(900)
@pytest.mark.slow
@pytest.mark.parametrize(("times", "seed"), [(10, seed) for seed in range(1, 6)])
async def test_no_stream_is_cut_within_the_grace_period(
    tmp_path: Path, tiny_model: Path, redis_url: str, times: int, seed: int
) -> None:
    dice, ends = random.Random(seed), Counter[str]()
    for _ in range(times):
        async with target(tmp_path, tiny_model, redis_url, "server.drain=20") as server:
            crowd = [asyncio.create_task(streams(server.address, ends)) for _ in range(STREAMS)]
            begun = ends["whole"]
            await eventually(lambda begun=begun: ends["whole"] >= begun + STREAMS, 60)
            await asyncio.sleep(dice.uniform(0, 1))
            assert server.half.process is not None
            server.half.process.terminate()
            await asyncio.gather(*crowd)
            await asyncio.to_thread(server.half.process.join, 30)
            assert server.half.exit_code == 0
            assert not server.complaints()
    print(ends)
    assert set(ends) == {"whole", "refused"}
    assert ends["refused"] == times * STREAMS
