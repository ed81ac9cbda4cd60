"""/metrics, /healthz and /readyz over HTTP, on a thread of its own so that a busy event loop can still be watched."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import TYPE_CHECKING, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app

from thumbwheel.errors import SetupError, ThumbwheelError
from thumbwheel.perimeter import CertificateFiles

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger("thumbwheel.metrics_http")

Check = Callable[[], bool]
Authorize = Callable[[str], Awaitable[bool]]

LOOK_UP_SECONDS = 5.0
"""The longest that looking up a key may take."""


class MetricsHttp:
    """A context manager that listens from its creation on.

    ``/healthz`` is 200 while `alive()`, ``/readyz`` is 200 while `ready()`; both are 503 otherwise. They are called
    on the server's threads and must only look at values. Probes have no key and need none.

    Args:
        host: address to listen on.
        port: 0 takes a free one; `port` of the object says which.
        certificate: for HTTPS; None: HTTP.
        authorize: whether an ``authorization`` header may see /metrics; runs on the loop that is running now. None:
            everybody may.

    Raises:
        SetupError: the port is taken or the address is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        alive: Check,
        ready: Check,
        registry: CollectorRegistry = REGISTRY,
        certificate: CertificateFiles | None = None,
        authorize: Authorize | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._metrics = make_wsgi_app(registry)
        self._checks = {"/healthz": alive, "/readyz": ready}
        self._authorize = authorize
        self._loop = asyncio.get_running_loop() if authorize is not None else None
        try:
            self._server = _server_class(family, certificate)((host.strip("[]"), port), _QuietHandler)
        except OSError as error:
            raise SetupError(f"cannot listen on {host}:{port} for metrics: {error.strerror}") from error
        self.port: int = self._server.server_port
        self._server.set_app(self._answer)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics-http", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _text(start, "405 Method Not Allowed", "GET and HEAD only")
        if path == "/metrics":
            if not self._allowed(environ.get("HTTP_AUTHORIZATION", "")):
                return _text(start, "401 Unauthorized", "a key with the scope metrics: Authorization: Bearer <key>")
            # In OpenMetrics, which Prometheus asks for, the library turns the colon of vLLM's names into an underscore,
            # and no dashboard of theirs finds them: prometheus/client_python#1177. Its text format keeps it.
            answer: Iterable[bytes] = self._metrics({**environ, "HTTP_ACCEPT": "text/plain"}, start)
            return answer
        if path in self._checks:
            return (
                _text(start, "200 OK", "ok") if self._checks[path]() else _text(start, "503 Service Unavailable", "no")
            )
        return _text(start, "404 Not Found", "there are /metrics, /healthz and /readyz")

    def _allowed(self, authorization: str) -> bool:
        if self._authorize is None:
            return True
        assert self._loop is not None

        async def ask() -> bool:
            assert self._authorize is not None
            return await self._authorize(authorization)

        try:
            return asyncio.run_coroutine_threadsafe(ask(), self._loop).result(LOOK_UP_SECONDS)
        except (ThumbwheelError, TimeoutError) as error:
            log.warning("scrape_refused", extra={"error": str(error)})
            return False


def _text(start: StartResponse, status: str, body: str) -> Iterable[bytes]:
    data = f"{body}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(data)))]
    if status.startswith("401"):
        headers.append(("WWW-Authenticate", "Bearer"))
    start(status, headers)
    return [data]


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds; a connection that says nothing does not keep its thread

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is no event."""


def _server_class(family: socket.AddressFamily, certificate: CertificateFiles | None) -> type[WSGIServer]:
    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = family

        def server_bind(self) -> None:
            # WSGIServer would ask DNS for the machine's name here, which can take seconds.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(self.server_address)
            self.server_address = self.socket.getsockname()
            self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
            self.setup_environ()

        def get_request(self) -> tuple[socket.socket, object]:
            connection, address = super().get_request()
            if certificate is None:
                return connection, address
            certificate.changed()  # if so, its context has the new one
            # The handshake is the handler's, on its own thread: here one slow caller would hold up all.
            wrapped = certificate.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            return wrapped, address

        def handle_error(self, request: object, client_address: object) -> None:
            """Callers who leave, or who speak HTTP to HTTPS, are no event; anything else is."""
            error = sys.exception()
            if not isinstance(error, OSError):  # as TLS' own errors are
                log.error("metrics_http_failed", exc_info=error)

    return Server
