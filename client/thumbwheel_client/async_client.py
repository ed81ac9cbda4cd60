"""The client, for code that runs on an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, overload

from thumbwheel_client import question, vote
from thumbwheel_client.answer import Answer, answer_of
from thumbwheel_client.async_stream import AsyncStream
from thumbwheel_client.connection import CHAT_SECONDS, DEFAULT_TARGET, VOTE_SECONDS, Connection
from thumbwheel_client.question import Options, Said
from thumbwheel_client.tls import TLS
from thumbwheel_client.translation import translated
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub
from thumbwheel_client.vote import Kind, Note, Rated, Thumb

if TYPE_CHECKING:  # generic only for the type checker
    from grpc.aio import UnaryUnaryMultiCallable

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class AsyncClient:
    """`Client`, call by call, for the event loop on which it is made. Tasks may share one.

    Leaving its `async with` cancels whatever they have not finished. Cancelling a task cancels its call, at the server
    too. Arguments and errors are those of `Client`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        key: str = "",
        user: str = "",
        tls: TLS | None = None,
        chat_seconds: float = CHAT_SECONDS,
        vote_seconds: float = VOTE_SECONDS,
    ) -> None:
        connection = Connection(target, key, user, tls, chat_seconds, vote_seconds)
        self._connection = connection
        self._channel = connection.async_channel()
        self._chat = ChatServiceStub(self._channel)
        self._feedback = FeedbackServiceStub(self._channel)
        self._closed = False

    @overload
    async def chat(self, said: Said, *, timeout: float | None = None, **options: Unpack[Options]) -> Answer: ...

    @overload
    async def chat(
        self, said: Said, *, n: int, timeout: float | None = None, **options: Unpack[Options]
    ) -> list[Answer]: ...

    async def chat(
        self,
        said: Said,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """As `Client.chat`."""
        request = chat_pb2.ChatRequest(input=question.chat_input(said, n, **options))
        reply = await self._call(self._chat.Chat, request, timeout, self._connection.chat_seconds)
        answers = [answer_of(answer) for answer in reply.answers]
        return answers[0] if n is None else answers

    def stream(
        self,
        said: Said,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """As `Client.stream`. The question is on its way when this returns; there is nothing to await."""
        request = chat_pb2.StreamChatRequest(input=question.chat_input(said, n, **options))
        seconds = self._connection.chat_seconds if timeout is None else timeout
        with translated(self._is_closed):
            call = self._chat.StreamChat(request, timeout=seconds, metadata=self._connection.metadata)
        return AsyncStream(call, self._is_closed)

    async def rate(
        self,
        rated: Rated,
        thumb: Thumb | None = None,
        *,
        stars: int | None = None,
        timeout: float | None = None,
        **note: Unpack[Note],
    ) -> str:
        """As `Client.rate`."""
        return await self._vote(vote.rating(rated, thumb, stars, **note), timeout)

    async def rank(
        self, best_first: Sequence[Rated | Sequence[Rated]], *, timeout: float | None = None, **note: Unpack[Note]
    ) -> str:
        """As `Client.rank`."""
        return await self._vote(vote.ranking(best_first, **note), timeout)

    async def correct(self, rated: Rated, text: str, *, timeout: float | None = None, **note: Unpack[Note]) -> str:
        """As `Client.correct`."""
        return await self._vote(vote.correction(rated, text, **note), timeout)

    async def retract(
        self, rated: Rated, kind: Kind, *, timeout: float | None = None, idempotency_key: str = ""
    ) -> str:
        """As `Client.retract`."""
        request = vote.retraction(rated, kind, idempotency_key)
        return (await self._call(self._feedback.Retract, request, timeout, self._connection.vote_seconds)).event_id

    async def aclose(self) -> None:
        """Cancels what is left, at the server too."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _vote(self, request: feedback_pb2.RateRequest, timeout: float | None) -> str:
        return (await self._call(self._feedback.Rate, request, timeout, self._connection.vote_seconds)).event_id

    async def _call(
        self, method: UnaryUnaryMultiCallable[Request, Reply], request: Request, timeout: float | None, usual: float
    ) -> Reply:
        seconds = usual if timeout is None else timeout
        with translated(self._is_closed):
            return await method(request, timeout=seconds, metadata=self._connection.metadata)

    def _is_closed(self) -> bool:
        return self._closed
