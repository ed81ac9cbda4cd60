"""Everything that goes wrong on purpose. One tree; `except ThumbwheelError` catches it all.

ThumbwheelError            what was wrong and what to do, in words for people
├── InvalidInput           a value is out of range; `field` names it
├── NotFound               no such answer, turn or version
├── NotAuthenticated       no key, or one that is not valid (any more)
├── NotAllowed             it is somebody else's answer, or the key has not the scope for it
├── Conflict               the same idempotency key came before, with another vote
├── NotReady               the thing asked for is in a state that does not allow it (yet)
├── Retryable              not now; the same call may go well in `retry_after` seconds
│   ├── Overloaded         the server's queue is full, or a limit of the key is used up
│   └── Unavailable        nobody answers, or the server is stopping, or its store is away
├── TimedOut               the deadline passed first
├── Cancelled              the client was closed before the call had ended
└── ServerError            the server failed; the message has an id that its log explains

A vote that ends in Retryable or TimedOut may be on disk or not: cast it again with the same idempotency key, it counts
once. The error of gRPC itself is the `__cause__`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

DEFAULT_RETRY_SECONDS = 1.0
"""Where the server does not say."""


class ThumbwheelError(Exception):
    """Root of the tree."""


class InvalidInput(ThumbwheelError):
    """`field` is the path of the offending value in the request, such as ``input.messages[2].role``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


class NotFound(ThumbwheelError):
    """No such thing."""


class NotAuthenticated(ThumbwheelError):
    """Nobody knows who calls."""


class NotAllowed(ThumbwheelError):
    """It is somebody else's, or beyond what the key allows."""


class Conflict(ThumbwheelError):
    """An idempotency key names one vote."""


class NotReady(ThumbwheelError):
    """The call was right, the time is not."""


class Retryable(ThumbwheelError):
    """`retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: float = DEFAULT_RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Retryable):
    """Too much for the server, or for the caller's limits."""


class Unavailable(Retryable):
    """Nobody is there who could answer, or nobody any more."""


class TimedOut(ThumbwheelError):
    """The caller's deadline, or the longest that the server allows."""


class Cancelled(ThumbwheelError):
    """By closing the client, here or in another thread or task."""


class ServerError(ThumbwheelError):
    """Nothing that a caller could mend."""


@contextmanager
def naming(field: str) -> Iterator[None]:
    """Protobuf's complaint about a value that no request can hold, as an InvalidInput of this field."""
    try:
        yield
    except ValueError as error:
        raise InvalidInput(field, str(error)) from error
