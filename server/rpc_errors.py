"""The boundary of every call: who makes it, its deadline, its error as a status, its count.

An expected error tells the caller what was wrong; an unexpected one tells an id, and the log tells the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status

from server import metrics
from server.access import SCOPES, Access, admit
from server.calls import Calls
from server.refusal import FAULTS, STOPPING, Refusal, refusal_of, too_long
from thumbwheel import errors, tracing

log = logging.getLogger("thumbwheel.rpc")

if TYPE_CHECKING:  # generic only for the type checker
    Context = aio.ServicerContext[Any, Any]
    Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]
Handler = Any
"""grpc.RpcMethodHandler, whose types know nothing of async handlers."""

OURS = "/thumbwheel.v1."
ENDLESS = frozenset({"WatchVersions", "Rollout"})
"""Methods without a deadline of ours; keepalive finds callers that are gone."""


def status_of(error: Exception) -> status_pb2.Status:
    """The status that a caller sees. Logs an unexpected error under the id that the status names."""
    status = _status(refusal_of(error))
    detail = _detail(error)
    if detail is not None:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def _status(refusal: Refusal) -> status_pb2.Status:
    return status_pb2.Status(code=refusal.code, message=refusal.message)


def _detail(error: Exception) -> Message | None:
    detail: Message
    if isinstance(error, errors.InvalidInput):
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        detail = error_details_pb2.BadRequest(field_violations=[violation])
        return detail
    if isinstance(error, errors.AdapterRefused):
        detail = error_details_pb2.ErrorInfo(reason=error.reason.upper(), domain="thumbwheel")
        return detail
    if isinstance(error, (errors.Overloaded, errors.StoreUnavailable)):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after * 1e9))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
        return detail
    return None


class Boundary(aio.ServerInterceptor):
    """Wraps our own methods; of health and reflection only the decoding, as they answer everybody.

    Requests arrive here as bytes. Bytes that are no request are a caller's mistake: left to grpc they would end as
    UNKNOWN and with a traceback in the log, for whoever cares to send them.

    Args:
        longest: seconds that a call may take when its caller sets no deadline or a longer one.
        access: tells who calls.
        calls: counts them.
    """

    def __init__(self, longest: float, access: Access, calls: Calls) -> None:
        self._longest = longest
        self._access = access
        self._calls = calls

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(details)
        if handler is None:
            return None
        if not details.method.startswith(OURS):
            return _foreign(handler)
        # A single reply goes out as a stream of one, which is the same to its caller. grpc's own way with single
        # replies puts an empty one before an error's status, and what has had a reply no client repeats.
        return grpc.unary_stream_rpc_method_handler(
            self._call(details.method, handler), response_serializer=handler.response_serializer
        )

    def _call(self, path: str, handler: Handler) -> Callable[[bytes, Context], Awaitable[None]]:
        async def call(raw: bytes, context: Context) -> None:
            unread = False

            async def write(message: Message) -> None:
                nonlocal unread
                unread = True
                await context.write(message)
                unread = False

            async def body() -> None:
                request = _decoded(handler, raw)
                if not handler.response_streaming:
                    await write(await handler.unary_unary(request, context))
                    return
                # Closed here and not by the garbage collector: closing is what aborts the engine's request, at once.
                messages: AsyncIterator[Any]
                async with aclosing(handler.unary_stream(request, context)) as messages:
                    async for message in messages:
                        await write(message)

            await self._guard(path, context, body, lambda: unread)

        return call

    async def _guard(
        self,
        path: str,
        context: Context,
        body: Callable[[], Awaitable[None]],
        unread: Callable[[], bool],
    ) -> None:
        """
        Args:
            unread: whether a message is on its way for which the caller gives no room.
        """
        method = path.rpartition("/")[2]
        if self._calls.closed:
            metrics.REQUESTS.labels(method, STOPPING.name).inc()
            _end(context, _status(STOPPING))
            return
        endless = method in ENDLESS
        code = "OK"
        metadata = context.invocation_metadata() or ()
        name = path.removeprefix("/")
        facts = {"rpc.system.name": "grpc", "rpc.method": name}
        with self._calls.running(endless=endless), tracing.request(name, metadata, facts) as step:
            try:
                async with nullcontext() if endless else asyncio.timeout(self._longest) as limit:
                    await admit(self._access, path, SCOPES.get(path), metadata)
                    await body()
            except asyncio.CancelledError:  # the caller left, its deadline passed, or the server stops
                remaining = context.time_remaining()
                code = "DEADLINE_EXCEEDED" if remaining is not None and remaining <= 0 else "CANCELLED"
                raise
            except Exception as error:  # the one place where any error becomes a status; refusal_of logs it
                if isinstance(error, TimeoutError) and limit is not None and limit.expired():
                    if unread():
                        code = "DEADLINE_EXCEEDED"
                        metrics.UNREAD_STREAMS.inc()
                        log.warning("caller_stopped_reading", extra={"method": method, "peer": context.peer()})
                        # Behind a message that is not taken grpc can send no status: it would wait for ever, or fail.
                        raise asyncio.CancelledError from error
                    status = _status(too_long(self._longest))
                else:
                    status = status_of(error)
                code = code_pb2.Code.Name(status.code)
                _end(context, status)
            finally:
                metrics.REQUESTS.labels(method, code).inc()
                step.tell(rpc__response__status_code=code)
                if code in FAULTS:
                    step.fail(code)


def _decoded(handler: Handler, raw: bytes) -> Message:
    """
    Raises:
        InvalidInput: the bytes are no such message.
    """
    try:
        request: Message = handler.request_deserializer(raw)
    except DecodeError as error:
        raise errors.InvalidInput("request", str(error)) from error
    return request


def _foreign(handler: Handler) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of grpc's own services that refuses bytes that are no request."""

    async def requests(raw: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for one in raw:
            yield _decoded(handler, one)

    async def call(raw: Any, context: Context) -> Any:
        try:
            if not handler.request_streaming:
                return await (handler.unary_stream or handler.unary_unary)(_decoded(handler, raw), context)
            async for reply in handler.stream_stream(requests(raw), context):
                await context.write(reply)
        except errors.InvalidInput as error:
            _end(context, status_of(error))
        return None

    if handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(call, response_serializer=handler.response_serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(call, response_serializer=handler.response_serializer)
    return grpc.unary_unary_rpc_method_handler(call, response_serializer=handler.response_serializer)


def _end(context: Context, status: status_pb2.Status) -> None:
    """The status with which the call ends when its handler returns.

    Not by `context.abort`: its exception and the call hold each other, and with them the request, until a full garbage
    collection, which comes after thousands of calls.
    """
    final = rpc_status.to_status(status)
    context.set_code(final.code)
    context.set_details(final.details)
    context.set_trailing_metadata(final.trailing_metadata)
