"""The boundary of every call over HTTP: who makes it, its deadline, its end with its caller, its error, its count.

    not while stopping ─► who is it ─► body, bounded ─► handler ─► reply
                                       ........ until the caller leaves ........

As `rpc_errors` does for gRPC.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from google.rpc import code_pb2
from starlette.datastructures import Headers, QueryParams
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from server import metrics
from server.access import Access, admit
from server.calls import Calls
from server.http_errors import error_body, error_response, http_error_response
from server.refusal import FAULTS, STOPPING, Refusal, refusal_of, too_long
from thumbwheel import tracing
from thumbwheel_client.v1.record_pb2 import Scope

log = logging.getLogger("thumbwheel.http")

MAX_BODY = 1 << 20
"""Bytes of a request, as for gRPC."""
BODY_SECONDS = 20.0
"""For a whole request to arrive."""
LAST_WORDS = 0.5
"""Seconds for an error to be taken by its caller."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler sees of a request. Who makes it is told by `access.caller`."""

    body: bytes
    headers: Headers
    query: Mapping[str, str]
    path: Mapping[str, str]


Handler = Callable[[Call], Awaitable[ASGIApp]]
"""Returns what sends the reply. What it raises before is sent as an error with its status."""


class HttpBoundary:
    """Wraps handlers.

    Args:
        longest: seconds that a call may take.
        access: tells who calls.
        calls: counts them.
    """

    def __init__(self, longest: float, access: Access, calls: Calls) -> None:
        self._longest = longest
        self._access = access
        self._calls = calls

    def route(self, verb: str, path: str, scope: Scope.ValueType, handler: Handler) -> Route:
        """Makes `handler` answer, to whoever has the scope."""
        return Route(path, _Endpoint(self, f"{verb} {path}", scope, handler), methods=[verb])

    async def answer(
        self, name: str, opens: Scope.ValueType, handler: Handler, scope: Connection, receive: Receive, send: Send
    ) -> None:
        """Answers one request.

        Args:
            opens: the scope that the caller needs.
            scope: ASGI's, which describes the request.
        """
        reply = _Reply(scope, receive, send)
        if self._calls.closed:
            metrics.REQUESTS.labels(name, STOPPING.name).inc()
            await reply.refuse(STOPPING, last=True)
            return
        code, whole = "OK", False
        headers = Headers(scope=scope)
        verb, _, route = name.partition(" ")
        facts = {"http.request.method": verb, "http.route": route}
        with self._calls.running(), tracing.request(name, headers.items(), facts) as step:
            try:
                async with asyncio.timeout(self._longest) as limit:
                    await admit(self._access, name, opens, headers.items())
                    body = await _body(headers, receive)
                    whole = True
                    query, path = QueryParams(scope["query_string"]), scope["path_params"]
                    await _until_left(receive, _handle(handler, Call(body, headers, query, path), reply))
            except asyncio.CancelledError:
                code = "CANCELLED"
                raise
            except _CallerLeft:
                code = "CANCELLED"
            except HTTPException as error:
                code = code_pb2.Code.Name(code_pb2.INVALID_ARGUMENT)
                await reply.end(error)
            except Exception as error:  # noqa: BLE001 - where any error becomes a reply; refusal_of logs it
                late = isinstance(error, TimeoutError) and limit.expired()
                refusal = too_long(self._longest) if late else refusal_of(error)
                code = refusal.name
                if late and reply.unread:
                    metrics.UNREAD_STREAMS.inc()
                    log.warning("caller_stopped_reading", extra={"method": name, "peer": _peer(scope)})
                    await reply.cut()
                else:
                    await reply.refuse(refusal, last=not whole)
            finally:
                metrics.REQUESTS.labels(name, code).inc()
                if reply.status:
                    step.tell(http__response__status_code=reply.status)
                if code in FAULTS:
                    step.fail(code)


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """An ASGI application, so that Starlette leaves the reply to us."""

    boundary: HttpBoundary
    name: str
    opens: Scope.ValueType
    handler: Handler

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        await self.boundary.answer(self.name, self.opens, self.handler, scope, receive, send)


class _CallerLeft(Exception):
    """The connection is closed."""


class _Reply:
    """What goes back. `unread` while the caller gives no room for what is on its way; `status` is 0 until it began."""

    def __init__(self, scope: Connection, receive: Receive, send: Send) -> None:
        self.unread = False
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send

    async def by(self, response: ASGIApp) -> None:
        """Lets `response` send it."""
        await response(self._scope, self._receive, self._pass)

    async def refuse(self, refusal: Refusal, *, last: bool = False) -> None:
        """Ends it with an error: as a response, or where one has begun as the last event of its stream.

        Args:
            last: nothing more is read from this connection, neither the rest of this request nor another.
        """
        if self.status:
            data = f"data: {json.dumps(error_body(refusal))}\n\n".encode()
            await self._timely(self._pass({"type": "http.response.body", "body": data, "more_body": False}))
            return
        response = error_response(refusal)
        if last:
            response.headers["connection"] = "close"
        await self._timely(self.by(response))

    async def end(self, error: HTTPException) -> None:
        """Ends it with an error of HTTP's own."""
        await self._timely(self.by(http_error_response(error)))

    async def cut(self) -> None:
        """Drops the connection, with what the caller did not take."""
        self._scope["state"]["abort"]()
        await _disconnected(self._receive)

    async def _timely(self, words: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(LAST_WORDS):
                await words
        except TimeoutError:
            await self.cut()

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"date", formatdate(usegmt=True).encode())]
        self.unread = True
        await self._send(message)
        self.unread = False


def _peer(scope: Connection) -> str:
    """The caller's address."""
    return ":".join(str(part) for part in scope["client"] or ())


async def _handle(handler: Handler, call: Call, reply: _Reply) -> None:
    await reply.by(await handler(call))


async def _body(headers: Headers, receive: Receive) -> bytes:
    """
    Raises:
        HTTPException: too large, too slow, or no JSON. The last also keeps out pages of other sites: without asking,
            which is refused, a browser sends for them only what is declared as something else.
        _CallerLeft: before it was whole.
    """
    declared = headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:20]) > MAX_BODY:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _CallerLeft
                body += message["body"]
                if len(body) > MAX_BODY:
                    raise _too_large()
                if not message["more_body"]:
                    break
    except TimeoutError as error:
        raise HTTPException(408, f"the request did not arrive within {BODY_SECONDS:g} s") from error
    if body and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, and say so: content-type: application/json")
    return bytes(body)


def _too_large() -> HTTPException:
    return HTTPException(413, f"a request may have {MAX_BODY} bytes")


async def _until_left(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; a caller who closes the connection ends it at once.

    Raises:
        _CallerLeft: it was ended.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _CallerLeft
        working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
