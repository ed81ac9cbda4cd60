"""The client for event loops: the same calls, and tasks that can be cancelled."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel_client import (
    AsyncClient,
    AsyncStream,
    Cancelled,
    Client,
    InvalidInput,
    NotFound,
    NotReady,
    Stream,
    TimedOut,
    Unavailable,
)
from thumbwheel_client.v1 import record_pb2 as pb

Until = Callable[..., Awaitable[None]]

OTHERWISE = {"close": "aclose"} | {f"__{name}__": f"__a{name}__" for name in ("enter", "exit", "iter", "next")}


@pytest.mark.parametrize(("waiting", "running"), [(Client, AsyncClient), (Stream, AsyncStream)])
def test_both_halves_have_the_same_calls(waiting: type, running: type) -> None:
    def calls(kind: type) -> dict[str, Any]:
        return {name: inspect.signature(call) for name, call in vars(kind).items() if inspect.isfunction(call)}

    same = {OTHERWISE.get(name, name): signature.parameters for name, signature in calls(waiting).items()}
    assert same == {name: signature.parameters for name, signature in calls(running).items()}


async def test_it_chats_and_votes(server: Any, votes: Any) -> None:
    async with AsyncClient(server.addresses.grpc, user="ada") as client:
        answer, (one, two) = await asyncio.gather(client.chat("Hello"), client.chat("Bye", n=2))
        assert (answer.text, one.text, two.text) == ("HELLO (0) é🙂", "BYE (0) é🙂", "BYE (1) é🙂")
        await client.rate(answer, "up", reasons=["short"])
        await client.rate(answer, stars=2)
        await client.rank([two, one])
        await client.correct(answer, "Good day.")
        assert [event.kind for event in await votes()] == sorted(pb.VoteKind.values())[1:]
        await client.retract(answer, "stars")
        await client.retract(one, "ranking")
        assert [event.kind for event in await votes()] == [pb.VOTE_KIND_THUMB, pb.VOTE_KIND_EDIT]


async def test_a_stream_gives_pieces_and_then_the_same_answer(server: Any) -> None:
    async with AsyncClient(server.addresses.grpc) as client, client.stream("Hello", n=2) as stream:
        texts = ["", ""]
        with pytest.raises(NotReady):
            _ = stream.receipt
        async for piece in stream:
            texts[piece.index] += piece.text
        assert texts == [answer.text for answer in stream.answers] == ["HELLO (0) é🙂", "HELLO (1) é🙂"]
        assert stream.finish.log_status == "logged"


async def test_errors_are_those_of_the_tree(server: Any, scripted: ScriptedEngine) -> None:
    async with AsyncClient(server.addresses.grpc) as client:
        with pytest.raises(InvalidInput) as refused:
            await client.chat("Hello", temperature=3)
        assert refused.value.field == "input.sampling.temperature"
        with pytest.raises(InvalidInput):
            await anext(client.stream("Hello", temperature=3))
        with pytest.raises(NotFound):
            await client.rate("t0-0", "up")
        scripted.resume.clear()
        with pytest.raises(TimedOut):
            await client.chat("Hello", timeout=0.3)
        with pytest.raises(TimedOut):
            await anext(client.stream("Hello", timeout=0.3))


async def test_leaving_a_stream_early_ends_the_sampling(
    settings: Callable[..., Config], run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 1000, token_seconds=0.005)
    async with run_server(settings(), engine) as server, AsyncClient(server.addresses.grpc) as client:
        async with client.stream("Hello", max_tokens=1000) as stream:
            await anext(stream)
        await until(lambda: not engine.running)
        assert [piece async for piece in stream] == [], "a stream that was left just ends"
        with pytest.raises(NotReady):
            _ = stream.answer


async def test_a_stream_can_be_closed_by_another_task(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    async def read(stream: AsyncStream) -> list[str]:
        return [piece.text async for piece in stream]

    scripted.resume.clear()
    async with AsyncClient(server.addresses.grpc) as client:
        stream = client.stream("Hello")
        reading = asyncio.create_task(read(stream))
        await until(lambda: scripted.running)
        await stream.aclose()
        assert await reading == []
        await until(lambda: not scripted.running)


async def test_cancelling_a_task_cancels_its_call(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    async with AsyncClient(server.addresses.grpc) as client:

        async def read() -> None:
            async with client.stream("Hello") as stream:
                await anext(stream)

        for work in (client.chat("Hello"), read()):
            task = asyncio.create_task(work)
            await until(lambda: scripted.running)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not scripted.running)


async def test_leaving_the_client_cancels_what_is_left(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    async with AsyncClient(server.addresses.grpc) as client:
        waiting = [asyncio.create_task(work) for work in (client.chat("a"), read_one(client), client.chat("b"))]
        await until(lambda: len(scripted.running) == 3)
        waiting[2].cancel()
    for task in waiting[:2]:
        with pytest.raises(Cancelled, match="closed"):
            await task
    with pytest.raises(asyncio.CancelledError):
        await waiting[2]
    await until(lambda: not scripted.running)
    with pytest.raises(Cancelled, match="closed"):
        await client.chat("Hello")
    with pytest.raises(Cancelled, match="closed"):
        client.stream("Hello")
    await client.aclose()


async def read_one(client: AsyncClient) -> str:
    return (await anext(client.stream("c"))).text


async def test_a_server_that_stops_is_no_cancellation(
    settings: Callable[..., Config], run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 50)
    engine.resume.clear()
    async with run_server(settings(drain=0.1), engine) as server, AsyncClient(server.addresses.grpc) as client:
        asking = asyncio.create_task(client.chat("Hello"))
        await until(lambda: engine.running)
        server.stop.set()
        with pytest.raises(Unavailable):
            await asking
