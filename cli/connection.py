"""How the commands reach a server: a channel, the three services, and errors in people's words."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import grpc.aio
import typer

from thumbwheel.errors import ThumbwheelError
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub
from thumbwheel_client.v1.models_pb2_grpc import ModelServiceStub

if TYPE_CHECKING:
    from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub
    from thumbwheel_client.v1.models_pb2_grpc import ModelServiceAsyncStub

DEFAULT_SERVER = "127.0.0.1:50051"
CHAT_SECONDS = 110.0
"""Deadline of a chat call; the server accepts up to 120 s."""
CALL_SECONDS = 30.0
"""Deadline of any other call."""

Server = Annotated[str, typer.Option("--server", metavar="HOST:PORT", help="Where the server listens.")]
User = Annotated[str, typer.Option("--user", metavar="NAME", help="Who you are to the server.")]

Metadata = tuple[tuple[str, str], ...]


def identity(user: str) -> Metadata:
    """What tells the server who is calling, where it asks for no key."""
    return (("x-thumbwheel-user", user),) if user else ()


@dataclass(frozen=True, slots=True)
class Services:
    """A server's services over one channel."""

    chat: ChatServiceAsyncStub
    feedback: FeedbackServiceAsyncStub
    models: ModelServiceAsyncStub


@asynccontextmanager
async def connect(server: str) -> AsyncIterator[Services]:
    """Nothing is sent before the first call."""
    async with grpc.aio.insecure_channel(server) as channel:
        yield Services(ChatServiceStub(channel), FeedbackServiceStub(channel), ModelServiceStub(channel))


def explain(error: grpc.RpcError, server: str) -> str:
    """One line for a failed call."""
    code = error.code() if isinstance(error, grpc.Call) else None
    said = (error.details() if isinstance(error, grpc.Call) else None) or ""
    if code == grpc.StatusCode.UNAVAILABLE and _nobody_there(said):
        return f"nothing answers at {server}: start it with make run"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"{server} took too long to answer; try again"
    label = code.name.lower().replace("_", " ") if code is not None else "call failed"
    return f"{label}: {said}" if said else label


def _nobody_there(said: str) -> bool:
    """Whether it was this side that gave up; a server that is there words its own refusals."""
    return any(part in said for part in ("failed to connect", "DNS resolution failed", "Socket closed", "GOAWAY"))


def fail(message: str) -> typer.Exit:
    """Says what is wrong, on one line where it is one, and makes the exit to raise."""
    print(f"thumbwheel: {message}", file=sys.stderr)
    return typer.Exit(1)


def run(server: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs a command; whatever goes wrong on purpose ends in one line and exit code 1, SIGINT and SIGTERM in 130."""

    async def interruptible() -> None:
        # asyncio.run treats SIGINT this way; SIGTERM must clean up just the same.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work()

    try:
        asyncio.run(interruptible())
    except ThumbwheelError as error:
        raise fail(str(error)) from None
    except grpc.RpcError as error:
        raise fail(explain(error, server)) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None
