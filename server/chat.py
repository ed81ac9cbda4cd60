"""ChatService: requests become questions, events become answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from grpc import aio

from server.access import caller
from server.engine import Engine
from server.question import question_of
from server.turns import Turns
from thumbwheel import config
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """`limits` are checked before anything is spent on a request."""

    def __init__(self, turns: Turns, engine: Engine, limits: config.Server) -> None:
        self._turns = turns
        self._engine = engine
        self._limits = limits

    async def Chat(
        self, request: chat_pb2.ChatRequest, context: aio.ServicerContext[Any, Any]
    ) -> chat_pb2.ChatResponse:
        answers: dict[int, chat_pb2.Answer] = {}
        texts: dict[int, list[str]] = {}
        async with aclosing(self._events(request.input)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "receipt":
                        answers[event.index] = chat_pb2.Answer(receipt=event.receipt)
                        texts[event.index] = []
                    case "delta":
                        texts[event.index].append(event.delta)
                    case _:
                        answers[event.index].finish.CopyFrom(event.finish)
        for index, answer in answers.items():
            answer.text = "".join(texts[index])
        return chat_pb2.ChatResponse(answers=[answers[index] for index in sorted(answers)])

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[chat_pb2.StreamChatResponse, None]:
        async with aclosing(self._events(request.input)) as events:
            async for event in events:
                yield event

    def _events(self, request: chat_pb2.ChatInput) -> AsyncGenerator[chat_pb2.StreamChatResponse, None]:
        return self._turns.answer(question_of(request, self._engine, self._limits), caller())
