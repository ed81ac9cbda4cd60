"""The listener for HTTP, in the event loop of everything else: uvicorn's connections without uvicorn's process."""

from __future__ import annotations

import asyncio
import logging
import socket

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from server.http_connection import IDLE_SECONDS, Connection
from thumbwheel.errors import SetupError
from thumbwheel.perimeter import CertificateFiles

BACKLOG = 1024
KEEPALIVE_SECONDS = 60
"""Of silence, after which the network is asked whether the caller's machine is still there."""
HANDSHAKE_SECONDS = 10.0

# Nonsense that somebody sends is no event; a failure of the application is.
logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


class HttpDoor:
    """Serves `app`.

    Args:
        certificate: for HTTPS; None: HTTP.
        longest: seconds after which a caller who takes no byte of a reply is given up.
    """

    def __init__(self, app: ASGIApp, certificate: CertificateFiles | None, longest: float) -> None:
        self._certificate = certificate
        self._longest = longest
        self._state = ServerState()
        self._listener: asyncio.Server | None = None
        self._settings = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,  # uvicorn's comes from a task of its process; replies bring theirs
            timeout_keep_alive=IDLE_SECONDS,
        )
        self._settings.load()

    async def open(self, host: str, port: int) -> int:
        """Listens; returns the port.

        Raises:
            SetupError: it is taken, or the address is not this machine's.
        """
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
        try:
            # Accepted connections inherit these.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._longest * 1000))
            listener.bind((host.strip("[]"), port))
        except OSError as error:
            listener.close()
            raise SetupError(f"cannot listen on {host}:{port} for HTTP: {error.strerror}") from error
        secure = self._certificate is not None
        self._listener = await asyncio.get_running_loop().create_server(
            self._accept,
            sock=listener,
            backlog=BACKLOG,
            ssl=self._certificate.context if self._certificate is not None else None,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if secure else None,
        )
        return int(listener.getsockname()[1])

    async def close(self, seconds: float) -> None:
        """Takes no more connections, lets replies leave for `seconds`, and drops what is left then."""
        if self._listener is None:
            return
        self._listener.close()
        for connection in self._connections():
            connection.shutdown()
        await self._gone(seconds)
        for connection in self._connections():
            connection.transport.abort()
        await self._gone(None)
        if self._state.tasks:
            await asyncio.wait(self._state.tasks)
        self._listener = None

    async def _gone(self, seconds: float | None) -> None:
        """Waits until all connections are closed."""
        waits = [connection.gone for connection in self._connections()]
        if waits:
            await asyncio.wait(waits, timeout=seconds)

    def _connections(self) -> list[Connection]:
        return [connection for connection in self._state.connections if isinstance(connection, Connection)]

    def _accept(self) -> Connection:
        if self._certificate is not None:
            self._certificate.changed()  # if so, its context has the new one, before this caller's handshake
        return Connection(self._settings, self._state, {})
