"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import math
from typing import Any

from google.rpc import code_pb2
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from server.refusal import Refusal
from thumbwheel.errors import NotFound

STATUSES: dict[int, tuple[int, str]] = {
    code_pb2.INVALID_ARGUMENT: (400, "invalid_value"),
    code_pb2.UNAUTHENTICATED: (401, "invalid_api_key"),
    code_pb2.PERMISSION_DENIED: (403, "permission_denied"),
    code_pb2.NOT_FOUND: (404, "not_found"),
    code_pb2.ALREADY_EXISTS: (409, "conflict"),
    code_pb2.FAILED_PRECONDITION: (409, "not_ready"),
    code_pb2.RESOURCE_EXHAUSTED: (429, "rate_limit_exceeded"),
    code_pb2.INTERNAL: (500, "internal_error"),
    code_pb2.UNAVAILABLE: (503, "unavailable"),
    code_pb2.DEADLINE_EXCEEDED: (504, "deadline_exceeded"),
}
"""Of each google.rpc.Code: the status, and OpenAI's `code`."""
IN_VAIN = frozenset({409, 504})
"""Statuses that OpenAI's clients would try again by themselves, though the same call would only end the same way."""


class ModelNotFound(NotFound):
    """No such version."""

    field = "model"


def error_body(refusal: Refusal) -> dict[str, Any]:
    """What is sent where an answer cannot be, or cannot go on."""
    status, code = STATUSES[refusal.code]
    param = _param(refusal.field)
    message = refusal.message
    if param is not None and message.startswith(f"{refusal.field}: "):
        message = param + message.removeprefix(refusal.field)
    if code == "not_found" and param == "model":
        code = "model_not_found"
    return _body(status, message, code, param)


def error_response(refusal: Refusal) -> JSONResponse:
    """`retry_after` goes along as both headers that OpenAI's clients know."""
    status, _ = STATUSES[refusal.code]
    headers: dict[str, str] = {}
    if refusal.retry_after is not None:
        headers["retry-after"] = str(math.ceil(refusal.retry_after))
        headers["retry-after-ms"] = str(math.ceil(refusal.retry_after * 1000))
    if status in IN_VAIN:
        headers["x-should-retry"] = "false"
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(refusal), status, headers)


def http_error_response(error: HTTPException) -> JSONResponse:
    """Of errors that are HTTP's own: no such path, too large, too slow. What is left of the request is not read."""
    codes = {404: "not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "request_too_large"}
    body = _body(error.status_code, error.detail, codes.get(error.status_code, "invalid_request"), None)
    return JSONResponse(body, error.status_code, {**(error.headers or {}), "connection": "close"})


def _body(status: int, message: str, code: str, param: str | None) -> dict[str, Any]:
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _param(field: str) -> str | None:
    """A field of our messages by the name that it has here."""
    if not field:
        return None
    name = field.removeprefix("input.").removeprefix("sampling.")
    return "model" if name == "version" else name
