"""A chat request as OpenAI's clients send it, and what it means here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, field_validator

from server.http_json import Sent, UInt32
from server.sampling import SEED_RANGE
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1 import chat_pb2, record_pb2

ROLES: Final = {
    "system": record_pb2.ROLE_SYSTEM,
    "developer": record_pb2.ROLE_SYSTEM,
    "user": record_pb2.ROLE_USER,
    "assistant": record_pb2.ROLE_ASSISTANT,
}

WITHOUT_EFFECT: Final[Mapping[str, tuple[object, ...]]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "top_logprobs": (0,),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
}
"""Parameters that would change the answer and are not supported, with the values that change nothing. Whatever else a
client sends (`user`, `metadata`, `store`, ...) changes no answer and is ignored."""


class ChatMessage(Sent):
    """One message. Clients add keys of their own, such as `name`."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _join(cls, content: Any) -> Any:
        """Parts become one text."""
        if not isinstance(content, list):
            return content
        texts = []
        for part in content:
            text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            if not isinstance(text, str):
                raise ValueError("parts must be of the type text, and have one")
            texts.append(text)
        return "".join(texts)


class StreamOptions(Sent):
    """How a stream is sent."""

    model_config = ConfigDict(extra="ignore")
    include_usage: bool | None = None


class ChatRequest(Sent):
    """The body of ``POST /v1/chat/completions``."""

    model_config = ConfigDict(extra="allow")
    model: str | None = None
    messages: list[ChatMessage]
    max_completion_tokens: UInt32 | None = None
    max_tokens: UInt32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Annotated[UInt32, Field(ge=1)] | None = None
    stop: list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it used."""
        return bool(self.stream_options and self.stream_options.include_usage)


def chat_input(request: ChatRequest, version: str) -> chat_pb2.ChatInput:
    """The same as our own message.

    Args:
        version: the one that `request.model` names; "" for the live one.

    Raises:
        InvalidInput: a parameter that would change the answer is not supported.
    """
    for name, value in (request.model_extra or {}).items():
        if value is not None and name in WITHOUT_EFFECT and value not in WITHOUT_EFFECT[name]:
            raise InvalidInput(name, "not supported; leave it out")
    sampling = record_pb2.Sampling(stop=request.stop)
    most = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if most is not None:
        sampling.max_tokens = most
    if request.temperature is not None:
        sampling.temperature = request.temperature
    if request.top_p is not None:
        sampling.top_p = request.top_p
    if request.seed is not None:
        sampling.seed = request.seed % SEED_RANGE
    messages = [record_pb2.Message(role=ROLES[each.role], content=each.content) for each in request.messages]
    return chat_pb2.ChatInput(messages=messages, sampling=sampling, n=request.n or 1, version=version)
