"""A question and how it is to be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from thumbwheel_client.errors import InvalidInput, naming
from thumbwheel_client.v1 import chat_pb2, record_pb2

Role = Literal["system", "user", "assistant"]

_ROLES: dict[str, record_pb2.Role.ValueType] = {
    "system": record_pb2.ROLE_SYSTEM,
    "user": record_pb2.ROLE_USER,
    "assistant": record_pb2.ROLE_ASSISTANT,
}


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. "system" may only speak first."""

    role: Role
    content: str


class MessageDict(TypedDict):
    """A message as JSON has it."""

    role: Role
    content: str


Said = str | Sequence[Message | MessageDict]
"""The conversation so far, or the one message of the user's with which it begins."""


class Options(TypedDict, total=False):
    """How to answer. What is left out is the server's to choose."""

    max_tokens: int
    """The most tokens of one answer."""
    temperature: float
    """0 (always the likeliest token) to 2."""
    top_p: float
    """Nucleus mass, above 0 and at most 1. Answers that people rate train best at 1."""
    stop: str | Sequence[str]
    """Up to 4 strings that end an answer; they are not part of its text."""
    seed: int
    """Makes the answer repeatable on the same version and machine."""
    conversation_id: str
    """Groups turns; up to 128 characters."""
    version: str
    """Answer with this version instead of the live one."""


def chat_input(
    said: Said,
    n: int | None,
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    conversation_id: str = "",
    version: str = "",
) -> chat_pb2.ChatInput:
    """The question as it is sent.

    Args:
        n: how many answers; None means 1.

    Raises:
        InvalidInput: a value that no request can hold; limits are the server's to check.
    """
    if n is not None and n < 1:
        raise InvalidInput("input.n", f"{n} answers; at least 1")
    with naming("input.sampling"):
        sampling = record_pb2.Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=[stop] if isinstance(stop, str) else stop,
            seed=seed,
        )
    messages = [Message("user", said)] if isinstance(said, str) else said
    with naming("input"):
        return chat_pb2.ChatInput(
            messages=[_message(message, index) for index, message in enumerate(messages)],
            sampling=sampling,
            n=n or 0,
            conversation_id=conversation_id,
            version=version,
        )


def _message(message: Message | MessageDict, index: int) -> record_pb2.Message:
    field = f"input.messages[{index}]"
    if not isinstance(message, Message):
        if message.keys() != {"role", "content"}:
            raise InvalidInput(field, f"must have role and content, and has {', '.join(message) or 'nothing'}")
        message = Message(**message)
    if message.role not in _ROLES:
        raise InvalidInput(f"{field}.role", f"{message.role!r}; must be one of {', '.join(_ROLES)}")
    with naming(f"{field}.content"):
        return record_pb2.Message(role=_ROLES[message.role], content=message.content)
