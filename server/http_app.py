"""What answers over HTTP: routes, and the same words for whatever is none of them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http_errors import http_error_response
from thumbwheel.perimeter import is_loopback


def application(routes: Sequence[BaseRoute], *, everybody: bool) -> Starlette:
    """
    Args:
        everybody: answer whatever name it is called by; otherwise only names of this machine.
    """
    middleware = [] if everybody else [Middleware(ThisMachine)]
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: _refuse})


class ThisMachine:
    """Refuses requests that name another host than this machine.

    Without keys whoever reaches the server may do everything, so only this machine does. A browser on it also runs
    other sites' pages; one whose name has been pointed at this address would reach it as its own. Its requests name it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "localhost")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if is_loopback(name):
            await self._app(scope, receive, send)
            return
        message = f"without keys (security.auth) this server is called as 127.0.0.1 or localhost, not {name!r}"
        await http_error_response(HTTPException(403, message))(scope, receive, send)


def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        error = HTTPException(404, f"there is no {request.url.path}")
    return http_error_response(error)
