"""ChatService: requests become questions, events become answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from grpc import aio

from server.access import caller
from server.answers import whole_answers
from server.question import Questions
from server.turns import Turns
from thumbwheel_client.v1 import chat_pb2, chat_pb2_grpc


class ChatService(chat_pb2_grpc.ChatServiceServicer):
    """Answers in one message or as it is sampled."""

    def __init__(self, questions: Questions, turns: Turns) -> None:
        self._questions = questions
        self._turns = turns

    async def Chat(
        self, request: chat_pb2.ChatRequest, context: aio.ServicerContext[Any, Any]
    ) -> chat_pb2.ChatResponse:
        question = await self._questions.read(request.input)
        answers = await whole_answers(self._turns.answer(question, caller()))
        return chat_pb2.ChatResponse(
            answers=[chat_pb2.Answer(receipt=one.receipt, text=one.text, finish=one.finish) for one in answers]
        )

    async def StreamChat(
        self, request: chat_pb2.StreamChatRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[chat_pb2.StreamChatResponse, None]:
        question = await self._questions.read(request.input)
        async with aclosing(self._turns.answer(question, caller())) as events:
            async for told in events:
                yield told.event
