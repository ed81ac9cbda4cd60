"""A chat request that has been checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from server.engine import Engine, SamplingSpec
from server.sampling import sampling_of
from thumbwheel import config
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1 import chat_pb2, record_pb2

MAX_ANSWERS = 8
MAX_CONVERSATION_ID_CHARS = 128
MAX_VERSION_CHARS = 128
BYTES_PER_TOKEN = 32
"""No text has more: longer input is refused before the tokenizer spends time on it."""

LONG = 1 << 12
"""Bytes from which on a request is read beside the event loop: tokenizing takes up to half a microsecond a byte, during
which no token of anybody would leave."""

ROLES = {record_pb2.ROLE_SYSTEM: "system", record_pb2.ROLE_USER: "user", record_pb2.ROLE_ASSISTANT: "assistant"}


@dataclass(frozen=True, slots=True)
class Question:
    """Everything that sampling needs. `version` None means the live one."""

    messages: Sequence[record_pb2.Message]
    prompt_token_ids: list[int]
    sampling: SamplingSpec
    n: int
    conversation_id: str
    version: str | None


class Questions:
    """Reads requests. `limits` are checked before anything is spent on one."""

    def __init__(self, engine: Engine, limits: config.Server) -> None:
        self._engine = engine
        self._limits = limits
        self._reader = ThreadPoolExecutor(1, "long-prompts")  # one: many long prompts wait for each other alone

    async def read(self, request: chat_pb2.ChatInput) -> Question:
        """
        Raises:
            InvalidInput: as `question_of`.
        """
        if request.ByteSize() < LONG:
            return question_of(request, self._engine, self._limits)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, question_of, request, self._engine, self._limits)


def question_of(request: chat_pb2.ChatInput, engine: Engine, limits: config.Server) -> Question:
    """
    Raises:
        InvalidInput: names the field and the limit.
    """
    if request.n > MAX_ANSWERS:
        raise InvalidInput("input.n", f"{request.n} answers; at most {MAX_ANSWERS}")
    if len(request.conversation_id) > MAX_CONVERSATION_ID_CHARS:
        raise InvalidInput(
            "input.conversation_id",
            f"{len(request.conversation_id)} characters; at most {MAX_CONVERSATION_ID_CHARS}",
        )
    if len(request.version) > MAX_VERSION_CHARS:
        raise InvalidInput("input.version", f"{len(request.version)} characters; at most {MAX_VERSION_CHARS}")
    sampling = sampling_of(request.sampling, "input.sampling", limits)
    _check_messages(request.messages, engine.max_context)
    try:
        prompt = engine.render([(ROLES[message.role], message.content) for message in request.messages])
    except InvalidInput as error:  # a template may want roles to alternate
        raise InvalidInput("input.messages", error.message) from error
    room = engine.max_context - len(prompt)
    if room < 1:
        raise InvalidInput(
            "input.messages", f"{len(prompt)} tokens; at most {engine.max_context - 1} leave room to answer"
        )
    if request.sampling.HasField("max_tokens") and sampling.max_tokens > room:
        raise InvalidInput(
            "input.sampling.max_tokens",
            f"{sampling.max_tokens} and the prompt's {len(prompt)} tokens are more than the context of"
            f" {engine.max_context}; at most {room}",
        )
    return Question(
        messages=request.messages,
        prompt_token_ids=prompt,
        sampling=replace(sampling, max_tokens=min(sampling.max_tokens, room)),
        n=request.n or 1,
        conversation_id=request.conversation_id,
        version=request.version or None,
    )


def _check_messages(messages: Sequence[record_pb2.Message], max_context: int) -> None:
    if not messages:
        raise InvalidInput("input.messages", "none; at least one is needed")
    if len(messages) > max_context:  # each costs a token or more
        raise InvalidInput(
            "input.messages", f"{len(messages)} messages; more than {max_context} cannot fit the context"
        )
    for index, message in enumerate(messages):
        field = f"input.messages[{index}]"
        if message.role not in ROLES:
            raise InvalidInput(f"{field}.role", f"{message.role}; must be ROLE_SYSTEM, ROLE_USER or ROLE_ASSISTANT")
        if message.role == record_pb2.ROLE_SYSTEM and index:
            raise InvalidInput(f"{field}.role", "ROLE_SYSTEM is allowed only in the first message")
        if not message.content.strip():
            raise InvalidInput(f"{field}.content", "empty")
    if messages[-1].role != record_pb2.ROLE_USER:
        raise InvalidInput(f"input.messages[{len(messages) - 1}].role", "the last message must be ROLE_USER")
    size = sum(len(message.content.encode()) for message in messages)
    if size > BYTES_PER_TOKEN * max_context:
        raise InvalidInput("input.messages", f"{size} bytes; the context is {max_context} tokens")
