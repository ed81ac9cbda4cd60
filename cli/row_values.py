"""Values of rows that others wrote: each is what it should be, or the row is refused for a reason without quotes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1.record_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER, Message

ROLES = {"system": ROLE_SYSTEM, "user": ROLE_USER, "assistant": ROLE_ASSISTANT}


def table(value: Any, field: str) -> Mapping[str, Any]:
    """An object of JSON.

    Raises:
        InvalidInput: it is none; so do all functions here.
    """
    if not isinstance(value, Mapping):
        raise InvalidInput(field, "must be an object")
    return value


def items(value: Any, field: str) -> list[Any]:
    """A list; none at all is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidInput(field, "must be a list")
    return value


def text(value: Any, field: str) -> str:
    """A text; none at all is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(field, "must be a text")
    return value


def number(value: Any, field: str) -> int:
    """A whole number that is not negative."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
        raise InvalidInput(field, "must be a whole number")
    return value


def messages(value: Any, field: str) -> list[Message]:
    """A conversation; a text is one message of a user's."""
    if isinstance(value, str):
        return [Message(role=ROLE_USER, content=value)]
    found = []
    for index, entry in enumerate(items(value, field)):
        name = f"{field}[{index}]"
        message = table(entry, name)
        role = ROLES.get(text(message.get("role"), f"{name}.role"))
        if role is None:
            raise InvalidInput(f"{name}.role", "must be system, user or assistant")
        found.append(Message(role=role, content=text(message.get("content"), f"{name}.content")))
    return found


def answer(value: Any, field: str) -> str:
    """The text of an answer: itself, or the content of the one message of an assistant's that it is."""
    if isinstance(value, str):
        return value
    said = messages(value, field)
    if [message.role for message in said] != [ROLE_ASSISTANT]:
        raise InvalidInput(field, "must be a text, or one message of the assistant's")
    return said[0].content


def time(value: Any, field: str) -> Timestamp | None:
    """A time as Parquet has it, as ISO 8601, or in seconds since 1970; None where there is none."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
        stamp = Timestamp()
        stamp.FromDatetime(value if value.tzinfo else value.replace(tzinfo=UTC))
    except (ValueError, OverflowError, OSError, AttributeError) as error:
        raise InvalidInput(field, "must be a time: ISO 8601, or seconds since 1970") from error
    return stamp
