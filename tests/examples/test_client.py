"""The client's examples do what they show, on a real server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.engine_scripted import ScriptedEngine
from tests.processes import free_port
from thumbwheel.config import Config
from thumbwheel_client.v1 import feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(example: str, target: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", EXAMPLES / example, target, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def votes(server: Any) -> Counter[int]:
    reply = await server.feedback.ListVotes(
        feedback_pb2.ListVotesRequest(), metadata=(("x-thumbwheel-user", "ada"),), timeout=10
    )
    return Counter(vote.event.kind for vote in reply.votes)


async def test_the_sync_example(settings: Callable[..., Config], run_server: Any) -> None:
    def script(_: Any, prompt: str, index: int) -> str:
        return "Rome it is." if "Italy" in prompt else f"Paris {index}"

    async with run_server(settings(), ScriptedEngine(script=script)) as server:
        code, out, err = await run("client_sync.py", server.addresses.grpc)
        assert (code, err) == (0, "")
        assert "Paris 0\n— base" in out
        assert "Rome it is.\n— base, stop" in out
        assert await votes(server) == {pb.VOTE_KIND_THUMB: 1, pb.VOTE_KIND_EDIT: 1, pb.VOTE_KIND_RANKING: 1}


async def test_the_async_example(settings: Callable[..., Config], run_server: Any) -> None:
    def script(_: Any, prompt: str, __: int) -> str:
        return "on and on " * 20 if "rain" in prompt else "Short."

    async with run_server(settings(), ScriptedEngine(script=script)) as server:
        code, out, err = await run("client_async.py", server.addresses.grpc)
        assert (code, err) == (0, "")
        assert [line.partition(":")[2].strip() for line in out.splitlines()[:3]] == ["Short."] * 3
        assert out.splitlines()[3].endswith("…")
        assert await votes(server) == {pb.VOTE_KIND_THUMB: 3}


async def test_without_a_server_they_say_so() -> None:
    for example in ("client_sync.py", "client_async.py"):
        code, _, err = await run(example, f"127.0.0.1:{free_port()}")
        assert code == 1
        assert err.startswith("Unavailable: ")
        assert len(err.splitlines()) == 1
