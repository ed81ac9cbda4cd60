"""Who is told what, and what is repeated, by calls that a server of the test counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import StatusCode, aio

from thumbwheel_client import AsyncClient, Client, InvalidInput, NotFound, Unavailable
from thumbwheel_client.connection import Connection, on_this_machine
from thumbwheel_client.tls import TLS
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc, feedback_pb2, feedback_pb2_grpc

ATTEMPTS = 5


class Flaky(chat_pb2_grpc.ChatServiceServicer, feedback_pb2_grpc.FeedbackServiceServicer):
    """Refuses the first calls, and keeps all requests."""

    def __init__(self, refusals: int, code: StatusCode = StatusCode.UNAVAILABLE, receipt_first: bool = False) -> None:
        self.requests: list[Any] = []
        self._refusals = refusals
        self._code = code
        self._receipt_first = receipt_first

    async def _take(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        await self._refuse(context)

    async def _refuse(self, context: Any) -> None:
        if len(self.requests) <= self._refusals:
            await context.abort(self._code, "not now")

    async def Chat(self, request: Any, context: Any) -> chat_pb2.ChatResponse:
        await self._take(request, context)
        return chat_pb2.ChatResponse(answers=[chat_pb2.Answer(text="Hello")])

    async def StreamChat(self, request: Any, context: Any) -> AsyncIterator[chat_pb2.StreamChatResponse]:
        self.requests.append(request)
        if not self._receipt_first:
            await self._refuse(context)
        yield chat_pb2.StreamChatResponse(receipt=chat_pb2.Receipt(response_id="t-0"))
        await self._refuse(context)
        yield chat_pb2.StreamChatResponse(delta="Hello")
        yield chat_pb2.StreamChatResponse(finish=chat_pb2.Finish())

    async def Rate(self, request: Any, context: Any) -> feedback_pb2.RateResponse:
        await self._take(request, context)
        return feedback_pb2.RateResponse(event_id="1-1")

    async def Retract(self, request: Any, context: Any) -> feedback_pb2.RetractResponse:
        await self._take(request, context)
        return feedback_pb2.RetractResponse(event_id="1-2")


@asynccontextmanager
async def calls(flaky: Flaky, call: Callable[[Client], Any]) -> AsyncIterator[Any]:
    """A task that makes the call."""
    server = aio.server()
    chat_pb2_grpc.add_ChatServiceServicer_to_server(flaky, server)
    feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(flaky, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    def make() -> Any:
        with Client(f"127.0.0.1:{port}") as client:
            return call(client)

    try:
        yield asyncio.to_thread(make)
    finally:
        await server.stop(None)


VOTES: dict[str, tuple[Callable[[Client], Any], Any]] = {
    "rate": (lambda client: client.rate("t-0", "up"), "1-1"),
    "rank": (lambda client: client.rank(["t-0", "t-1"]), "1-1"),
    "correct": (lambda client: client.correct("t-0", "Hi"), "1-1"),
    "retract": (lambda client: client.retract("t-0", "thumb"), "1-2"),
}


@pytest.mark.parametrize("name", VOTES)
async def test_a_vote_is_repeated_under_one_key(name: str) -> None:
    call, result = VOTES[name]
    flaky = Flaky(refusals=1)
    async with calls(flaky, call) as calling:
        assert await calling == result
    first, again = flaky.requests
    assert first == again
    assert first.idempotency_key


async def test_another_vote_has_another_key() -> None:
    flaky = Flaky(refusals=0)
    async with calls(flaky, lambda client: [client.rate("t-0", "up"), client.rate("t-0", "up")]) as calling:
        await calling
    first, second = flaky.requests
    assert first.idempotency_key != second.idempotency_key


async def test_repeating_comes_to_an_end() -> None:
    flaky = Flaky(refusals=ATTEMPTS)
    async with calls(flaky, lambda client: client.rate("t-0", "up")) as calling:
        with pytest.raises(Unavailable, match="not now"):
            await calling
    assert len(flaky.requests) == ATTEMPTS


async def test_a_question_is_repeated_until_its_receipt_and_never_after() -> None:
    flaky = Flaky(refusals=1)
    async with calls(flaky, lambda client: [piece.text for piece in client.stream("Hi")]) as calling:
        assert await calling == ["Hello"]
    assert len(flaky.requests) == 2
    flaky = Flaky(refusals=1, receipt_first=True)
    async with calls(flaky, lambda client: list(client.stream("Hi"))) as calling:
        with pytest.raises(Unavailable, match="not now"):
            await calling
    assert len(flaky.requests) == 1


async def test_a_question_for_a_whole_answer_is_not_repeated() -> None:
    flaky = Flaky(refusals=1)
    async with calls(flaky, lambda client: client.chat("Hi")) as calling:
        with pytest.raises(Unavailable, match="not now"):
            await calling
    assert len(flaky.requests) == 1


async def test_only_what_may_go_well_later_is_repeated() -> None:
    for code, error in ((StatusCode.NOT_FOUND, NotFound), (StatusCode.CANCELLED, Unavailable)):
        flaky = Flaky(refusals=1, code=code)
        async with calls(flaky, lambda client: client.rate("t-0", "up")) as calling:
            with pytest.raises(error):
                await calling
        assert len(flaky.requests) == 1, code


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("dns:localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("dns://10.0.0.1/localhost:50051", False),
        ("unix:/run/thumbwheel.sock", True),
        ("unix", False),
        ("xds:///localhost:50051", False),
        ("unknown:///127.0.0.1:50051", False),
        ("10.0.0.1:50051", False),
        ("dns://localhost/example.org:50051", False),
        ("ipv4:127.0.0.1:50051,10.0.0.1:50051", False),
        ("[2001:db8::1]:50051", False),
        ("localhost.example.org:50051", False),
        ("example.org", False),
        ("127.0.0.1:50051@example.org", False),
        ("", False),
    ],
)
def test_a_key_leaves_this_machine_over_tls_only(target: str, here: bool) -> None:
    def connection(key: str, tls: TLS | None) -> Connection:
        return Connection(target, key, "", tls, 1, 1)

    assert on_this_machine(target) == here
    assert connection("", None).metadata == ()
    assert connection("tw_k", TLS()).metadata == (("authorization", "Bearer tw_k"),)
    if here:
        assert connection("tw_k", None).metadata == (("authorization", "Bearer tw_k"),)
    else:
        with pytest.raises(InvalidInput, match="TLS") as refused:
            connection("tw_k", None)
        assert "tw_k" not in str(refused.value)


@pytest.mark.parametrize(
    ("field", "who"), [("key", {"key": "tw_k\n"}), ("user", {"user": "Zoë"}), ("user", {"key": "k", "user": "ada"})]
)
def test_who_calls_is_said_once_and_in_letters_that_can_be_sent(field: str, who: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        Client(**who)
    assert refused.value.field == field
    assert "tw_k" not in str(refused.value)


def test_a_name_is_told_where_no_key_is_asked_for() -> None:
    assert Connection("127.0.0.1", "", "ada", None, 1, 1).metadata == (("x-thumbwheel-user", "ada"),)


async def test_calls_of_this_machine_go_through_no_proxy(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> str:
        with Client(server.addresses.grpc) as client:
            return client.chat("Hello").text

    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert (await asyncio.to_thread(ask)).startswith("HELLO")
    async with AsyncClient(server.addresses.grpc) as client:
        assert (await client.chat("Hello")).text.startswith("HELLO")
