"""How the commands reach a server: a channel, the three services, and errors in people's words."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import grpc
import grpc.aio
import typer

from cli import instance
from cli.options import resolve
from thumbwheel.errors import SetupError, ThumbwheelError
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

Server = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help=f"Where the server listens; default: the one that runs here, or {DEFAULT_SERVER}.",
    ),
]
User = Annotated[str, typer.Option("--user", metavar="NAME", help="Who you are to the server.")]

Metadata = tuple[tuple[str, str], ...]


def address(server: str, data_dir: Path | None) -> str:
    """The server that was named, else the one that runs in the data directory, else the default one.

    Raises:
        SetupError: a data directory was named and nothing runs in it.
    """
    if server:
        return server
    found = instance.find(resolve(None, None, data_dir).data_dir)
    if found is None and data_dir is not None:
        raise SetupError(f"nothing runs in {data_dir}: start it with thumbwheel up --data-dir {data_dir}")
    return found.grpc if found else DEFAULT_SERVER


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
    told = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code, said = (error.code(), error.details() or "") if told else (None, "")
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


def run(work: Callable[[str], Coroutine[Any, Any, None]], server: str = "", data_dir: Path | None = None) -> None:
    """Runs a command with the server's address.

    Whatever goes wrong on purpose ends in one line and exit code 1, SIGINT and SIGTERM in 130.
    """

    async def interruptible() -> None:
        # asyncio.run treats SIGINT this way; SIGTERM must clean up just the same.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work(where)

    where = server
    try:
        where = address(server, data_dir)
        asyncio.run(interruptible())
    except ThumbwheelError as error:
        raise fail(str(error)) from None
    except grpc.RpcError as error:
        raise fail(explain(error, where)) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None
