"""The client that waits, against a real server: what it gives, what it ends, and what goes wrong."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from server.engine_scripted import ScriptedEngine
from tests.processes import free_port
from thumbwheel.config import Config
from thumbwheel.credentials import Credentials
from thumbwheel.errors import EngineDead
from thumbwheel.store import Store
from thumbwheel_client import (
    TLS,
    Cancelled,
    Client,
    Conflict,
    InvalidInput,
    Message,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotReady,
    Overloaded,
    Receipt,
    ServerError,
    Stream,
    ThumbwheelError,
    TimedOut,
    Unavailable,
)
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb

Until = Callable[..., Awaitable[None]]
in_thread = asyncio.to_thread
"""The server runs on the loop of the tests, so whoever waits for it must not stand on that loop."""


async def test_an_answer_comes_with_its_receipt_and_its_end(server: Any) -> None:
    def ask() -> None:
        with Client(server.addresses.grpc) as client:
            said = [
                Message("system", "Be brief."),
                Message("user", "Hi"),
                Message("assistant", "Yes?"),
                Message("user", "Bye"),
            ]
            answer = client.chat(said)
            assert answer.text == "BYE (0) é🙂"
            assert answer.receipt == Receipt(f"{answer.receipt.turn_id}-0", "base", answer.receipt.turn_id)
            assert (answer.finish.reason, answer.finish.log_status) == ("stop", "logged")
            prompt = "<system>Be brief.\n<user>Hi\n<assistant>Yes?\n<user>Bye\n<assistant>"
            assert answer.finish.usage.prompt_tokens == len(prompt)
            assert answer.finish.usage.completion_tokens == len(answer.text.encode()) + 1
            assert client.chat("Hello", max_tokens=3).finish.reason == "length"
            assert client.chat("Hello", stop="LL").text == "HE"
            assert [answer.text[:5] for answer in client.chat("Hello", n=2)] == ["HELLO", "HELLO"]

    await in_thread(ask)


async def test_a_stream_gives_pieces_and_then_the_same_answer(server: Any) -> None:
    def ask() -> None:
        with Client(server.addresses.grpc) as client, client.stream("Hello") as stream:
            with pytest.raises(NotReady):
                _ = stream.receipt
            pieces = []
            for piece in stream:
                pieces.append(piece.text)
                assert stream.receipt.version == "base"
                with pytest.raises(NotReady):
                    _ = stream.answer
            assert len(pieces) > 5
            assert "".join(pieces) == stream.answer.text == "HELLO (0) é🙂"
            assert stream.finish == stream.answer.finish
            assert stream.answers == [stream.answer]
            assert list(stream) == []

    await in_thread(ask)


async def test_several_streamed_answers_are_told_apart_by_their_index(server: Any) -> None:
    def ask() -> None:
        with Client(server.addresses.grpc) as client, client.stream("Hello", n=3) as stream:
            texts = ["", "", ""]
            for piece in stream:
                texts[piece.index] += piece.text
            assert texts == [f"HELLO ({index}) é🙂" for index in range(3)] == [answer.text for answer in stream.answers]
            assert [receipt.response_id[-2:] for receipt in stream.receipts] == ["-0", "-1", "-2"]

    await in_thread(ask)


async def test_every_kind_of_vote_arrives_and_can_be_taken_back(server: Any, votes: Any) -> None:
    def vote() -> tuple[str, str]:
        with Client(server.addresses.grpc, user="ada") as client:
            one, two, three = client.chat("Hello", n=3)
            client.rate(one, "down")
            client.rate(one, "up", reasons=["short", "kind"], comment="well said")
            client.rate(one.receipt, stars=4)
            client.correct(one.receipt.response_id, "Good day.", reasons=["rude"])
            client.rank([two, [one.receipt, three.receipt.response_id]], comment="two")
        return one.receipt.turn_id, one.receipt.response_id

    turn, answer = await in_thread(vote)
    thumb, stars, ranking, edit = await votes()
    assert [event.response_id for event in (thumb, stars, ranking, edit)] == [answer, answer, "", answer]
    assert (thumb.thumb, list(thumb.reasons), thumb.comment) == (pb.THUMB_UP, ["short", "kind"], "well said")
    assert stars.stars == 4
    assert (edit.edit, list(edit.reasons)) == ("Good day.", ["rude"])
    assert {item.response_id: item.rank for item in ranking.ranking.items} == {
        f"{turn}-1": 1,
        f"{turn}-0": 2,
        f"{turn}-2": 2,
    }
    assert ranking.comment == "two"

    def retract() -> None:
        with Client(server.addresses.grpc, user="ada") as client:
            for kind in ("thumb", "stars", "edit"):
                client.retract(answer, kind)
            client.retract(f"{turn}-2", "ranking")

    await in_thread(retract)
    assert await votes() == []


async def test_a_key_of_ones_own_counts_once_however_often_it_is_sent(server: Any, votes: Any) -> None:
    def vote() -> None:
        with Client(server.addresses.grpc, user="ada") as client:
            answer = client.chat("Hello")
            first = client.rate(answer, "up", idempotency_key="k")
            assert client.rate(answer, "up", idempotency_key="k") == first
            with pytest.raises(Conflict):
                client.rate(answer, "down", idempotency_key="k")
            assert client.rate(answer, "up") != first, "without one each call is a vote"
            taken = client.retract(answer, "thumb", idempotency_key="r")
            assert client.retract(answer, "thumb", idempotency_key="r") == taken

    await in_thread(vote)
    assert await votes() == []


async def test_leaving_a_stream_early_ends_the_sampling(
    settings: Callable[..., Config], run_server: Any, until: Until
) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 1000, token_seconds=0.005)
    async with run_server(settings(), engine) as server:
        client = Client(server.addresses.grpc)

        def leave() -> Stream:
            with client.stream("Hello", max_tokens=1000) as stream:
                next(stream)
            return stream

        stream = await in_thread(leave)
        await until(lambda: not engine.running)
        assert stream.receipt.version == "base"
        assert await in_thread(list, stream) == [], "a stream that was left just ends"
        with pytest.raises(NotReady):
            _ = stream.answer
        client.close()


async def test_a_stream_can_be_closed_by_another_thread(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    with Client(server.addresses.grpc) as client:
        stream = client.stream("Hello")
        reading = asyncio.create_task(in_thread(list, stream))
        await until(lambda: scripted.running)
        stream.close()
        assert await reading == []
        await until(lambda: not scripted.running)


async def test_leaving_the_client_cancels_what_is_left(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    with Client(server.addresses.grpc) as client:
        stream = client.stream("Hello")
        waiting = [asyncio.create_task(in_thread(list, stream)), asyncio.create_task(in_thread(client.chat, "Hello"))]
        await until(lambda: len(scripted.running) == 2)
    for call in waiting:
        with pytest.raises(Cancelled, match="closed"):
            await call
    await until(lambda: not scripted.running)
    for call in (client.chat, client.stream):
        with pytest.raises(Cancelled, match="closed"):
            call("Hello")
    client.close()


async def test_what_the_server_refuses_is_told_by_its_own_error(server: Any) -> None:
    def go_wrong() -> None:
        with Client(server.addresses.grpc, user="ada") as client, Client(server.addresses.grpc, user="bob") as bob:
            answer = client.chat("Hello")
            for field, call in {
                "input.n": lambda: client.chat("Hello", n=9),
                "input.sampling.temperature": lambda: client.chat("Hello", temperature=2.1),
                "input.messages[0].content": lambda: client.chat(" "),
                "input.messages[1].role": lambda: client.chat([Message("user", "a"), Message("assistant", "b")]),
                "stars": lambda: client.rate(answer, stars=6),
                "edit": lambda: client.correct(answer, " "),
                "ranking.items": lambda: client.rank([answer]),
                "comment": lambda: client.rate(answer, "up", comment="x" * 2001),
            }.items():
                with pytest.raises(InvalidInput) as refused:
                    call()
                assert refused.value.field == field
                assert str(refused.value) == f"{field}: {refused.value.message}"
            with pytest.raises(InvalidInput, match="larger than max"):
                client.chat("x" * (1 << 20))
            with pytest.raises(InvalidInput, match="0 to 2"):
                list(client.stream("Hello", temperature=2.1))
            with pytest.raises(NotFound, match="nobody"):
                client.chat("Hello", version="nobody")
            with pytest.raises(NotFound) as lost:
                client.rate(f"{answer.receipt.turn_id}-7", "up")
            assert isinstance(lost.value.__cause__, grpc.RpcError)
            with pytest.raises(NotAllowed):
                bob.rate(answer, "up")

    await in_thread(go_wrong)


async def test_a_full_server_says_when_to_come_again(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    message = pb.Message(role=pb.ROLE_USER, content="Hello")

    def others(n: int) -> Any:
        request = chat_pb2.ChatRequest(input=chat_pb2.ChatInput(messages=[message], n=n))
        return asyncio.ensure_future(server.chat.Chat(request))

    running = others(4)
    await until(lambda: scripted.running)
    queued = others(1)
    await until(lambda: REGISTRY.get_sample_value("thumbwheel_queued_answers") == 1)
    with Client(server.addresses.grpc) as client, pytest.raises(Overloaded) as refused:
        await in_thread(client.chat, "Hello")
    assert 0.5 <= refused.value.retry_after <= 30
    scripted.resume.set()
    assert [len((await call).answers) for call in (running, queued)] == [4, 1]


async def test_a_deadline_ends_the_sampling(server: Any, scripted: ScriptedEngine, until: Until) -> None:
    scripted.resume.clear()
    with Client(server.addresses.grpc, chat_seconds=0.3) as client:
        with pytest.raises(TimedOut):
            await in_thread(client.chat, "Hello")
        with pytest.raises(TimedOut):
            await in_thread(list, client.stream("Hello"))
    await until(lambda: not scripted.running)
    with Client(server.addresses.grpc) as client:
        with pytest.raises(TimedOut):
            await in_thread(lambda: client.chat("Hello", timeout=0.3))
        with pytest.raises(TimedOut):
            await in_thread(list, client.stream("Hello", timeout=0.3))


async def test_what_fails_inside_the_server_has_an_id_in_its_log(
    settings: Callable[..., Config], run_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def script(*_: Any) -> str:
        raise RuntimeError("the secret sauce")

    async with run_server(settings(), ScriptedEngine(script=script)) as server:
        with Client(server.addresses.grpc) as client, pytest.raises(ServerError) as failed:
            await in_thread(client.chat, "Hello")
    [record] = [record for record in caplog.records if record.getMessage() == "call_failed"]
    assert record.error_id in str(failed.value)


async def test_an_engine_that_dies_breaks_the_stream_off(settings: Callable[..., Config], run_server: Any) -> None:
    engine = ScriptedEngine(script=lambda *_: "x" * 1000, token_seconds=0.002)
    running = run_server(settings(), engine)
    server = await running.__aenter__()
    with Client(server.addresses.grpc) as client:
        stream = client.stream("Hello", max_tokens=1000)
        await in_thread(next, stream)
        engine.die()
        with pytest.raises(Unavailable, match="engine"):
            await in_thread(list, stream)
        assert stream.receipt.version == "base"
    async with asyncio.timeout(10):
        await asyncio.wait((server.task,))
    with pytest.raises(EngineDead):
        await running.__aexit__(None, None, None)


async def test_nobody_is_there() -> None:
    with Client(f"127.0.0.1:{free_port()}") as client, pytest.raises(Unavailable):
        await in_thread(client.chat, "Hello")


async def test_a_vote_outlasts_a_restart_of_the_store(
    settings: Callable[..., Config], run_server: Any, own_redis: Any, until: Until
) -> None:
    def refused() -> float:
        return REGISTRY.get_sample_value("thumbwheel_requests_total", {"method": "Rate", "code": "UNAVAILABLE"}) or 0

    config = settings().model_copy(update={"redis": settings().redis.model_copy(update={"url": own_redis.url})})
    async with run_server(config, ScriptedEngine()) as server:
        with Client(server.addresses.grpc) as client:
            answer = await in_thread(client.chat, "Hello")
            before = refused()
            own_redis.kill()
            voting = asyncio.create_task(in_thread(client.rate, answer, "up"))
            await until(lambda: refused() > before)
            await in_thread(own_redis.start)
            event = await voting
            assert await in_thread(client.rate, answer, "up") != event


def closed(config: Config, certificate: Any, **security: Any) -> Config:
    files = {"tls_certificate": certificate.chain, "tls_key": certificate.key, "auth": "keys", **security}
    return config.model_copy(update={"security": config.security.model_copy(update=files)})


async def make_key(config: Config, user: str, *scopes: pb.Scope.ValueType) -> str:
    store = await Store.open(config.redis.url, config.redis.namespace)
    try:
        return (await Credentials(store).make(user, scopes))[0]
    finally:
        await store.close()


async def test_a_key_over_tls_opens_what_its_scopes_allow(
    settings: Callable[..., Config], run_server: Any, certificates: Any
) -> None:
    one = certificates("one")
    config = closed(settings(), one)
    key = await make_key(config, "ada", pb.SCOPE_CHAT)
    async with run_server(config, ScriptedEngine()) as server:
        target, tls = server.addresses.grpc, TLS(ca=one.ca)

        def call() -> None:
            with Client(target, key=key, tls=tls) as client:
                answer = client.chat("Hello")
                with pytest.raises(NotAllowed, match="rate"):
                    client.rate(answer, "up")
            for stranger in (Client(target, tls=tls), Client(target, key="tw_nonsense", tls=tls)):
                with stranger, pytest.raises(NotAuthenticated):
                    stranger.chat("Hello")
            with Client(target, key=key) as plain, pytest.raises(Unavailable):
                plain.chat("Hello")

        await in_thread(call)


async def test_with_mutual_tls_the_client_shows_its_certificate(
    settings: Callable[..., Config], run_server: Any, certificates: Any
) -> None:
    one, caller = certificates("one"), certificates("caller")
    config = closed(settings(), one, tls_client_ca=caller.ca)
    key = await make_key(config, "ada", pb.SCOPE_CHAT)
    async with run_server(config, ScriptedEngine()) as server:
        target = server.addresses.grpc

        def call() -> None:
            shown = TLS(ca=Path(one.ca), certificate=caller.chain, private_key=caller.key, server_name="localhost")
            with Client(target, key=key, tls=shown) as client:
                assert client.chat("Hello").text
            with Client(target, key=key, tls=TLS(ca=one.ca)) as client, pytest.raises(Unavailable):
                client.chat("Hello")
            other = TLS(ca=one.ca, certificate=caller.chain, private_key=caller.key, server_name="elsewhere")
            with Client(target, key=key, tls=other) as client, pytest.raises(Unavailable):
                client.chat("Hello")
            with pytest.raises(FileNotFoundError):
                Client(target, tls=TLS(ca="nowhere.pem"))

        await in_thread(call)


async def test_threads_may_share_a_client(server: Any, votes: Any) -> None:
    failures: list[ThumbwheelError] = []

    def work(client: Client, number: int) -> None:
        try:
            answer = client.chat(f"hello {number}")
            assert answer.text.startswith(f"HELLO {number} ")
            client.rate(answer, "up")
        except ThumbwheelError as error:
            failures.append(error)

    def crowd() -> None:
        with Client(server.addresses.grpc, user="ada") as client:
            threads = [threading.Thread(target=work, args=(client, number)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    await in_thread(crowd)
    assert failures == []
    assert len(await votes()) == 4
