"""JSON that callers send, checked against a model."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thumbwheel.errors import InvalidInput

UInt32 = Annotated[int, Field(ge=0, lt=1 << 32)]
"""What fits an uint32 of our messages; what is sensible is said by those who read these."""


class Sent(BaseModel):
    """What a caller sent. Nothing is converted: "1" is no number. Unknown keys are errors."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


S = TypeVar("S", bound=Sent)


def read(body: bytes) -> dict[str, Any]:
    """
    Raises:
        InvalidInput: no JSON object.
    """
    try:
        data = pydantic_core.from_json(body)
    except ValueError as error:
        raise InvalidInput("body", f"not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInput("body", "must be a JSON object")
    return data


def checked(kind: type[S], data: dict[str, Any]) -> S:
    """
    Raises:
        InvalidInput: names the first value that is wrong.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
        raise InvalidInput(_path(fault["loc"]), fault["msg"]) from error


def _path(parts: tuple[int | str, ...]) -> str:
    """("messages", 0, "role") as messages[0].role."""
    path = ""
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path.removeprefix(".") or "body"
