"""gRPC's errors as ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc import StatusCode, aio

from thumbwheel_client import errors
from thumbwheel_client.error_details import details_of
from thumbwheel_client.errors import ThumbwheelError

CLOSED = "the client was closed"

KINDS: dict[StatusCode, type[ThumbwheelError]] = {
    StatusCode.NOT_FOUND: errors.NotFound,
    StatusCode.UNAUTHENTICATED: errors.NotAuthenticated,
    StatusCode.PERMISSION_DENIED: errors.NotAllowed,
    StatusCode.ALREADY_EXISTS: errors.Conflict,
    StatusCode.FAILED_PRECONDITION: errors.NotReady,
    StatusCode.DEADLINE_EXCEEDED: errors.TimedOut,
    StatusCode.INTERNAL: errors.ServerError,
}


def error_of(error: grpc.RpcError) -> ThumbwheelError:
    """What a failed call means, whichever of gRPC's two halves raised it."""
    code, said = error.code(), error.details() or "no reason was given"
    trailers: Any = error.trailing_metadata()  # each half has a type of its own for these pairs
    details = details_of(trailers or ())
    retry_after = errors.DEFAULT_RETRY_SECONDS if details.retry_after is None else details.retry_after
    match code:
        case StatusCode.INVALID_ARGUMENT:
            return errors.InvalidInput(details.field, details.description or said)
        # Without a hint it was not the server that had no room, but gRPC: the message is too long.
        case StatusCode.RESOURCE_EXHAUSTED if details.retry_after is None:
            return errors.InvalidInput("", said)
        case StatusCode.RESOURCE_EXHAUSTED:
            return errors.Overloaded(said, retry_after)
        # Nobody here cancelled it: a server that stops ends its connections in this way.
        case StatusCode.UNAVAILABLE | StatusCode.CANCELLED:
            return errors.Unavailable(said, retry_after)
        case _ if code in KINDS:
            return KINDS[code](said)
        case _:
            return errors.ServerError(f"{code.name.lower()}: {said}")


@contextmanager
def translated(closed: Callable[[], bool]) -> Iterator[None]:
    """Raises what gRPC raises inside as an error of ours.

    Args:
        closed: whether the client has been closed.
    """
    try:
        yield
    except grpc.RpcError as error:
        raise (errors.Cancelled(CLOSED) if closed() else error_of(error)) from error
    except (ValueError, aio.UsageError) as error:  # gRPC's two words for a channel that is closed
        if not closed():
            raise
        raise errors.Cancelled(CLOSED) from error
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if not closed() or (task is not None and task.cancelling()):
            raise
        raise errors.Cancelled(CLOSED) from error
