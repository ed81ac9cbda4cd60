"""What a caller hears of an error, before it is put into the words of gRPC or HTTP."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass

from google.rpc import code_pb2

from thumbwheel import errors

log = logging.getLogger("thumbwheel.rpc")

CODES: dict[type[errors.ThumbwheelError], int] = {
    errors.InvalidInput: code_pb2.INVALID_ARGUMENT,
    errors.NotFound: code_pb2.NOT_FOUND,
    errors.NotAuthenticated: code_pb2.UNAUTHENTICATED,
    errors.NotAllowed: code_pb2.PERMISSION_DENIED,
    errors.Conflict: code_pb2.ALREADY_EXISTS,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.StoreUnavailable: code_pb2.UNAVAILABLE,
    errors.EngineDead: code_pb2.UNAVAILABLE,
    errors.AdapterRefused: code_pb2.FAILED_PRECONDITION,
    errors.NotReady: code_pb2.FAILED_PRECONDITION,
}
FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE"})
"""What is no caller's mistake, as traces tell the two apart."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """`code` is one of google.rpc.Code; `field` names what was wrong, "" if nothing was; `retry_after` in seconds."""

    code: int
    message: str
    field: str = ""
    retry_after: float | None = None

    @property
    def name(self) -> str:
        """The code's name, such as UNAVAILABLE."""
        return str(code_pb2.Code.Name(self.code))


STOPPING = Refusal(code_pb2.UNAVAILABLE, "this server is stopping", retry_after=1.0)


def refusal_of(error: Exception) -> Refusal:
    """An expected error tells what was wrong; an unexpected one is logged under an id, and tells that."""
    code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), None)
    if code is None:
        error_id = secrets.token_hex(8)
        log.error("call_failed", exc_info=error, extra={"error_id": error_id})
        return Refusal(code_pb2.INTERNAL, f"internal error {error_id}; the server's log has it")
    field = error.field if isinstance(error, (errors.InvalidInput, errors.NotFound)) else ""
    wait = error.retry_after if isinstance(error, (errors.Overloaded, errors.StoreUnavailable)) else None
    return Refusal(code, str(error), field, wait)


def too_long(seconds: float) -> Refusal:
    """Of a call that was ended because it lasted `seconds`."""
    message = f"the call took longer than {seconds:g} s, the longest this server allows"
    return Refusal(code_pb2.DEADLINE_EXCEEDED, message)
