"""The client, for code that waits."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar, Unpack, overload

from thumbwheel_client import question, vote
from thumbwheel_client.answer import Answer, answer_of
from thumbwheel_client.connection import CHAT_SECONDS, DEFAULT_TARGET, VOTE_SECONDS, Connection
from thumbwheel_client.question import Options, Said
from thumbwheel_client.stream import Stream
from thumbwheel_client.tls import TLS
from thumbwheel_client.translation import translated
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub
from thumbwheel_client.vote import Kind, Note, Rated, Thumb

if TYPE_CHECKING:  # generic only for the type checker
    from grpc import UnaryUnaryMultiCallable

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Client:
    """Asks and rates. Threads may share one; leaving its `with` cancels whatever they have not finished.

    Every call raises errors of one tree, which `thumbwheel_client.errors` draws.

    Args:
        target: host:port of the server's public port, or any other target of gRPC.
        key: what the server knows the caller by.
        user: the caller's name, for a server that asks for no key.
        tls: None is no TLS, for this machine.
        chat_seconds: how long a question may take, where the call does not say.
        vote_seconds: how long a vote may take, where the call does not say.

    Raises:
        InvalidInput: `key` and `user` together, or with characters that cannot be sent; or a key for another machine
            without TLS.
        OSError: a file of `tls` cannot be read.
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
        self._channel = connection.channel()
        self._chat = ChatServiceStub(self._channel)
        self._feedback = FeedbackServiceStub(self._channel)
        self._closed = False

    @overload
    def chat(self, said: Said, *, timeout: float | None = None, **options: Unpack[Options]) -> Answer: ...

    @overload
    def chat(self, said: Said, *, n: int, timeout: float | None = None, **options: Unpack[Options]) -> list[Answer]: ...

    def chat(
        self,
        said: Said,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Answer | list[Answer]:
        """Asks and waits for the whole answer, or with `n` (1 to 8) for a list of so many.

        It is never repeated by itself: after an error the answer may have been sampled, and lost.

        Args:
            said: the conversation so far, whose last message is the user's, or that message alone.
            timeout: in seconds.
        """
        request = chat_pb2.ChatRequest(input=question.chat_input(said, n, **options))
        reply = self._call(self._chat.Chat, request, timeout, self._connection.chat_seconds)
        answers = [answer_of(answer) for answer in reply.answers]
        return answers[0] if n is None else answers

    def stream(
        self,
        said: Said,
        *,
        n: int | None = None,
        timeout: float | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """Asks, and gives the answer piece by piece; with `n` (1 to 8) so many, interleaved.

        Arguments are those of `chat`. Until its first piece is on the way it is repeated by itself.
        """
        request = chat_pb2.StreamChatRequest(input=question.chat_input(said, n, **options))
        seconds = self._connection.chat_seconds if timeout is None else timeout
        with translated(self._is_closed):
            call = self._chat.StreamChat(request, timeout=seconds, metadata=self._connection.metadata)
        return Stream(call, self._is_closed)

    def rate(
        self,
        rated: Rated,
        thumb: Thumb | None = None,
        *,
        stars: int | None = None,
        timeout: float | None = None,
        **note: Unpack[Note],
    ) -> str:
        """Gives a thumb, or 1 to 5 stars. Rating again changes the vote.

        Returns when the vote is on disk: its place in the vote stream.
        """
        return self._vote(vote.rating(rated, thumb, stars, **note), timeout)

    def rank(
        self, best_first: Sequence[Rated | Sequence[Rated]], *, timeout: float | None = None, **note: Unpack[Note]
    ) -> str:
        """Puts answers of one turn in order. Those that share a place stand in a list of their own.

        Returns as `rate`.
        """
        return self._vote(vote.ranking(best_first, **note), timeout)

    def correct(self, rated: Rated, text: str, *, timeout: float | None = None, **note: Unpack[Note]) -> str:
        """Says what the answer should have been.

        Returns as `rate`.
        """
        return self._vote(vote.correction(rated, text, **note), timeout)

    def retract(self, rated: Rated, kind: Kind, *, timeout: float | None = None, idempotency_key: str = "") -> str:
        """Takes one's vote of this kind back; a ranking by any answer of its turn.

        Returns when that is on disk: its place in the vote stream.
        """
        request = vote.retraction(rated, kind, idempotency_key)
        return self._call(self._feedback.Retract, request, timeout, self._connection.vote_seconds).event_id

    def close(self) -> None:
        """Cancels what is left, at the server too. Any thread may call this."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _vote(self, request: feedback_pb2.RateRequest, timeout: float | None) -> str:
        return self._call(self._feedback.Rate, request, timeout, self._connection.vote_seconds).event_id

    def _call(
        self, method: UnaryUnaryMultiCallable[Request, Reply], request: Request, timeout: float | None, usual: float
    ) -> Reply:
        seconds = usual if timeout is None else timeout
        with translated(self._is_closed):
            return method(request, timeout=seconds, metadata=self._connection.metadata)

    def _is_closed(self) -> bool:
        return self._closed
