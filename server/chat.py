"""ChatService: requests become questions, events become answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

from grpc import aio

from server.access import caller
from server.engine import Engine
from server.question import Question, question_of
from server.turns import Turns
from thumbwheel import config
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc

LONG = 1 << 12
"""Bytes from which on a request is read beside the event loop: tokenizing takes up to half a microsecond a byte, during
which no token of anybody would leave."""


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """`limits` are checked before anything is spent on a request."""

    def __init__(self, turns: Turns, engine: Engine, limits: config.Server) -> None:
        self._turns = turns
        self._engine = engine
        self._limits = limits
        self._reader = ThreadPoolExecutor(1, "long-prompts")  # one: many long prompts wait for each other alone

    async def Chat(
        self, request: chat_pb2.ChatRequest, context: aio.ServicerContext[Any, Any]
    ) -> chat_pb2.ChatResponse:
        answers: dict[int, chat_pb2.Answer] = {}
        texts: dict[int, list[str]] = {}
        question = await self._question(request.input)
        async with aclosing(self._turns.answer(question, caller())) as events:
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
        question = await self._question(request.input)
        async with aclosing(self._turns.answer(question, caller())) as events:
            async for event in events:
                yield event

    async def _question(self, request: chat_pb2.ChatInput) -> Question:
        if request.ByteSize() < LONG:
            return question_of(request, self._engine, self._limits)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._reader, question_of, request, self._engine, self._limits)
