"""Chat with a thumbwheel server and rate its answers.

    with Client("127.0.0.1:50051") as client:
        answer = client.chat("What is the capital of France?")
        client.rate(answer, "up")

`thumbwheel_client.v1` has the stubs of the whole API. The names below are looked up when they are first used, so that
whoever needs only messages imports only those.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thumbwheel_client.answer import Answer, Finish, FinishReason, LogStatus, Receipt, Span, Usage
    from thumbwheel_client.async_client import AsyncClient
    from thumbwheel_client.async_stream import AsyncStream
    from thumbwheel_client.client import Client
    from thumbwheel_client.connection import CHAT_SECONDS, DEFAULT_TARGET, VOTE_SECONDS
    from thumbwheel_client.errors import (
        Cancelled,
        Conflict,
        InvalidInput,
        NotAllowed,
        NotAuthenticated,
        NotFound,
        NotReady,
        Overloaded,
        Retryable,
        ServerError,
        ThumbwheelError,
        TimedOut,
        Unavailable,
    )
    from thumbwheel_client.question import Message, MessageDict, Options, Role, Said
    from thumbwheel_client.stream import Stream
    from thumbwheel_client.tls import TLS
    from thumbwheel_client.transcript import Piece
    from thumbwheel_client.vote import Kind, Note, Rated, Thumb

__all__ = [
    "CHAT_SECONDS",
    "DEFAULT_TARGET",
    "TLS",
    "VOTE_SECONDS",
    "Answer",
    "AsyncClient",
    "AsyncStream",
    "Cancelled",
    "Client",
    "Conflict",
    "Finish",
    "FinishReason",
    "InvalidInput",
    "Kind",
    "LogStatus",
    "Message",
    "MessageDict",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "NotReady",
    "Note",
    "Options",
    "Overloaded",
    "Piece",
    "Rated",
    "Receipt",
    "Retryable",
    "Role",
    "Said",
    "ServerError",
    "Span",
    "Stream",
    "Thumb",
    "ThumbwheelError",
    "TimedOut",
    "Unavailable",
    "Usage",
]

_NOUNS = (
    "errors",
    "answer",
    "question",
    "vote",
    "transcript",
    "tls",
    "stream",
    "async_stream",
    "connection",
    "client",
    "async_client",
)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name in __all__:
            for module in _NOUNS:
                found = vars(import_module(f"thumbwheel_client.{module}")).get(name)
                if found is not None:
                    globals()[name] = found
                    return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
