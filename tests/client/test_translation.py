"""Every status of gRPC is an error of the tree, with what the server said of it."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from thumbwheel_client import errors
from thumbwheel_client.error_details import TRAILER, Details, details_of
from thumbwheel_client.errors import ThumbwheelError
from thumbwheel_client.translation import error_of, translated


def trailers(*details: Message) -> tuple[tuple[str, str | bytes], ...]:
    status = status_pb2.Status(code=3, message="said")
    for detail in details:
        status.details.add().Pack(detail)
    return (("server", "x"), (TRAILER, status.SerializeToString()))


def failed(code: StatusCode, said: str | None, *details: Message) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailers(*details)), said)


VIOLATION = error_details_pb2.BadRequest(
    field_violations=[error_details_pb2.BadRequest.FieldViolation(field="input.n", description="9; at most 8")]
)
LATER = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))


def test_details_are_read_as_they_are_sent_by_googles_own_messages() -> None:
    info = error_details_pb2.ErrorInfo(reason="X", domain="thumbwheel")
    assert details_of(trailers(info, VIOLATION, LATER)) == Details("input.n", "9; at most 8", 2.5)
    assert details_of(trailers(error_details_pb2.RetryInfo(), error_details_pb2.BadRequest())) == Details(retry_after=0)
    assert details_of(trailers()) == details_of(()) == Details()


@pytest.mark.parametrize("sent", [b"\xff", b"\x1a\x05ab", "text"])
def test_details_that_cannot_be_read_tell_nothing(sent: str | bytes) -> None:
    assert details_of(((TRAILER, sent),)) == Details()


def test_details_within_details_that_cannot_be_read_tell_nothing() -> None:
    status = status_pb2.Status()
    status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    assert details_of(((TRAILER, status.SerializeToString()),)) == Details()


KINDS: dict[StatusCode, type[ThumbwheelError]] = {
    StatusCode.CANCELLED: errors.Unavailable,
    StatusCode.UNKNOWN: errors.ServerError,
    StatusCode.INVALID_ARGUMENT: errors.InvalidInput,
    StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    StatusCode.NOT_FOUND: errors.NotFound,
    StatusCode.ALREADY_EXISTS: errors.Conflict,
    StatusCode.PERMISSION_DENIED: errors.NotAllowed,
    StatusCode.UNAUTHENTICATED: errors.NotAuthenticated,
    StatusCode.RESOURCE_EXHAUSTED: errors.InvalidInput,
    StatusCode.FAILED_PRECONDITION: errors.NotReady,
    StatusCode.ABORTED: errors.ServerError,
    StatusCode.UNIMPLEMENTED: errors.ServerError,
    StatusCode.INTERNAL: errors.ServerError,
    StatusCode.UNAVAILABLE: errors.Unavailable,
    StatusCode.OUT_OF_RANGE: errors.ServerError,
    StatusCode.DATA_LOSS: errors.ServerError,
}


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_every_status_is_an_error(code: StatusCode) -> None:
    error = error_of(failed(code, "what the server said"))
    assert type(error) is KINDS[code]
    assert "what the server said" in str(error)
    assert str(error_of(failed(code, None)))


def test_a_refused_value_is_named() -> None:
    error = error_of(failed(StatusCode.INVALID_ARGUMENT, "input.n: 9; at most 8", VIOLATION))
    assert isinstance(error, errors.InvalidInput)
    assert (error.field, error.message, str(error)) == ("input.n", "9; at most 8", "input.n: 9; at most 8")


@pytest.mark.parametrize(
    ("code", "kind"),
    [(StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded), (StatusCode.UNAVAILABLE, errors.Unavailable)],
)
def test_when_to_come_again_is_the_servers_word(code: StatusCode, kind: type[errors.Retryable]) -> None:
    error = error_of(failed(code, "full", LATER))
    assert isinstance(error, errors.Retryable)
    assert (type(error), error.retry_after) == (kind, 2.5)


@pytest.mark.parametrize(
    "raised", [failed(StatusCode.UNAVAILABLE, "gone"), ValueError("closed"), aio.UsageError("closed")]
)
def test_whatever_grpc_raises_after_closing_is_cancelled(raised: Exception) -> None:
    with pytest.raises(errors.Cancelled) as cancelled, translated(lambda: True):
        raise raised
    assert cancelled.value.__cause__ is raised
    with pytest.raises((type(raised), errors.Unavailable)) as other, translated(lambda: False):
        raise raised
    assert isinstance(other.value, errors.Unavailable) == isinstance(raised, grpc.RpcError)


async def test_a_task_that_is_cancelled_stays_so() -> None:
    async def wait(closed: bool) -> None:
        with translated(lambda: closed):
            await asyncio.Event().wait()

    for closed in (False, True):
        task = asyncio.create_task(wait(closed))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(asyncio.CancelledError), translated(lambda: False):
        raise asyncio.CancelledError
    with pytest.raises(errors.Cancelled), translated(lambda: True):
        raise asyncio.CancelledError
