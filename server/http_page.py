"""The web page: the files of `server/web` as they lie there, for whoever reaches the server.

It holds nothing that is anybody's and needs no key; what it shows it asks for as every other client does. Its policy
lets nothing run, load or be asked that does not come from here, whatever an answer says.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from collections.abc import Mapping
from email.utils import formatdate
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.http_errors import http_error_response

INDEX: Final = "index.html"
TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # what makes markup of a text throws, instead of making it
        "trusted-types 'none'",
    )
)
HEADERS: Final[Mapping[str, str]] = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # asked for again each time, and not sent again while it is the same
}


def page() -> list[Route]:
    """A route for each file, and `/` for the first. They are read now: no request names a path on the disk."""
    routes = []
    for file in (importlib.resources.files("server") / "web").iterdir():
        kind = TYPES.get(file.name.rpartition(".")[2])
        if kind is not None:
            path = "/" if file.name == INDEX else f"/{file.name}"
            routes.append(Route(path, _File(file.read_bytes(), kind), methods=["GET"]))
    return routes


class _File:
    """One file, as an ASGI application."""

    def __init__(self, body: bytes, kind: str) -> None:
        self._body = body
        self._tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        self._headers = {**HEADERS, "content-type": kind, "etag": self._tag}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope)
        if asked.get("content-length", "0") != "0" or "transfer-encoding" in asked:
            # Nothing here reads it, and it could take for ever to come.
            error = HTTPException(413, "this takes no body")
            await http_error_response(error)(scope, receive, send)
            return
        headers = {**self._headers, "date": formatdate(usegmt=True)}
        known = {tag.strip().removeprefix("W/") for tag in asked.get("if-none-match", "").split(",")}
        if self._tag in known or "*" in known:
            del headers["content-type"]
            response = Response(status_code=304, headers=headers)
        else:
            response = Response(self._body, headers=headers)
        await response(scope, receive, send)
