"""How the commands reach a server: its channels, the services, and errors in people's words."""

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

from cli import instance, local_keys
from cli.options import resolve
from thumbwheel.config import Client
from thumbwheel.errors import SetupError, ThumbwheelError
from thumbwheel.secret_files import client_pem, read_secret
from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceStub
from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceStub
from thumbwheel_client.v1.import_pb2_grpc import ImportServiceStub
from thumbwheel_client.v1.models_pb2_grpc import ModelServiceStub
from thumbwheel_client.v1.privacy_pb2_grpc import PrivacyServiceStub

if TYPE_CHECKING:
    from thumbwheel_client.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from thumbwheel_client.v1.feedback_pb2_grpc import FeedbackServiceAsyncStub
    from thumbwheel_client.v1.import_pb2_grpc import ImportServiceAsyncStub
    from thumbwheel_client.v1.models_pb2_grpc import ModelServiceAsyncStub
    from thumbwheel_client.v1.privacy_pb2_grpc import PrivacyServiceAsyncStub

DEFAULT_SERVER = "127.0.0.1:50051"
DEFAULT_ADMIN = "127.0.0.1:50052"
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
AdminServer = Annotated[
    str,
    typer.Option(
        "--server",
        metavar="HOST:PORT",
        help=f"Where the server's admin port listens; default: the one that runs here, or {DEFAULT_ADMIN}.",
    ),
]
User = Annotated[str, typer.Option("--user", metavar="NAME", help="Who you are to a server that asks for no key.")]

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Door:
    """A server as a caller sees it: its addresses, and what it takes to be let in.

    `credentials` None is no TLS; `server_name` "" is what the addresses say; `key` "" is no key.
    """

    public: str
    admin: str
    credentials: grpc.ChannelCredentials | None = None
    server_name: str = ""
    key: str = ""

    @property
    def options(self) -> list[tuple[str, str]]:
        """Of a channel."""
        return [("grpc.ssl_target_name_override", self.server_name)] if self.server_name else []

    @classmethod
    def of(cls, client: Client, public: str, admin: str) -> Door:
        """
        Raises:
            SetupError: a file of [client] cannot be used.
        """
        credentials = grpc.ssl_channel_credentials(*client_pem(client)) if client.ca else None
        key = read_secret(client.key_file, "client.key_file") if client.key_file else ""
        return cls(public, admin, credentials, client.server_name, key)

    def channel(self) -> grpc.Channel:
        """To chat and feedback, for code that waits."""
        if self.credentials is None:
            return grpc.insecure_channel(self.public)
        return grpc.secure_channel(self.public, self.credentials, self.options)

    def identity(self, user: str) -> Metadata:
        """What tells the server who is calling: the key, or a name where it asks for none."""
        if self.key:
            return (("authorization", f"Bearer {self.key}"),)
        return (("x-thumbwheel-user", user),) if user else ()


def find(server: str, data_dir: Path | None) -> Door:
    """The server that was named, else the one that runs in the data directory, else the default one.

    Raises:
        SetupError: a data directory was named and nothing runs in it; or a file of [client] cannot be used.
    """
    settings = resolve(None, None, data_dir)
    if server:
        return Door.of(settings.client, server, server)
    found = instance.find(settings.data_dir)
    if found is None:
        if data_dir is not None:
            raise SetupError(f"nothing runs in {data_dir}: start it with thumbwheel up --data-dir {data_dir}")
        return Door.of(settings.client, DEFAULT_SERVER, DEFAULT_ADMIN)
    client, own = settings.client, local_keys.operator(settings.data_dir)
    if not client.ca:
        client = client.model_copy(update=found.client)
    if not client.key_file and own.exists():
        client = client.model_copy(update={"key_file": str(own)})
    return Door.of(client, found.grpc, found.admin)


@dataclass(frozen=True, slots=True)
class Services:
    """A server's services, and who calls them."""

    door: Door
    chat: ChatServiceAsyncStub
    feedback: FeedbackServiceAsyncStub
    models: ModelServiceAsyncStub
    privacy: PrivacyServiceAsyncStub
    imports: ImportServiceAsyncStub

    def identity(self, user: str) -> Metadata:
        return self.door.identity(user)


@asynccontextmanager
async def connect(door: Door) -> AsyncIterator[Services]:
    """Nothing is sent before the first call."""
    async with _channel(door, door.public) as public, _channel(door, door.admin) as admin:
        yield Services(
            door,
            ChatServiceStub(public),
            FeedbackServiceStub(public),
            ModelServiceStub(admin),
            PrivacyServiceStub(admin),
            ImportServiceStub(admin),
        )


def _channel(door: Door, address: str) -> grpc.aio.Channel:
    if door.credentials is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, door.credentials, door.options)


def explain(error: grpc.RpcError, server: str) -> str:
    """One line for a failed call."""
    told = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    code, said = (error.code(), error.details() or "") if told else (None, "")
    if code == grpc.StatusCode.UNAVAILABLE and _nobody_there(said):
        return f"nothing answers at {server}: start it with make run"
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return f"{server} does not let you in: {said}\n  client.key_file (THUMBWHEEL_CLIENT__KEY_FILE) names your key"
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


def run(work: Callable[[Door], Coroutine[Any, Any, None]], server: str = "", data_dir: Path | None = None) -> None:
    """Runs a command with the way to the server.

    Whatever goes wrong on purpose ends in one line and exit code 1, SIGINT and SIGTERM in 130.
    """

    async def interruptible(door: Door) -> None:
        # asyncio.run treats SIGINT this way; SIGTERM must clean up just the same.
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await work(door)

    where = server
    try:
        door = find(server, data_dir)
        where = door.public
        asyncio.run(interruptible(door))
    except ThumbwheelError as error:
        raise fail(str(error)) from None
    except grpc.RpcError as error:
        raise fail(explain(error, where)) from None
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise typer.Exit(130) from None
