"""``POST /v1/chat/completions``: the same engine and the same receipts as ChatService."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from server import http_json
from server.access import caller
from server.answers import whole_answers
from server.engine import Engine
from server.http_boundary import Call
from server.http_completion import completion, completion_chunks, logprobs_by, no_logprobs
from server.http_errors import ModelNotFound
from server.http_models import HttpModels
from server.http_request import ChatRequest, chat_input
from server.http_stream import EventStream
from server.question import Questions
from server.turns import Turns
from thumbwheel.errors import NotFound

VERSION_HEADER = "x-thumbwheel-version"


class HttpChat:
    """Answers in one piece, or as it is sampled."""

    def __init__(self, questions: Questions, turns: Turns, engine: Engine, models: HttpModels) -> None:
        self._questions = questions
        self._turns = turns
        self._models = models
        self._logprobs = logprobs_by(engine.decode, engine.eos_token_ids)

    async def complete(self, call: Call) -> ASGIApp:
        request = http_json.checked(ChatRequest, http_json.read(call.body))
        question = await self._questions.read(chat_input(request, self._models.version(request.model)))
        turn = self._turns.answer(question, caller())
        logprobs = self._logprobs if request.logprobs else no_logprobs
        try:
            if not request.stream:
                answers = await whole_answers(turn)
                headers = {VERSION_HEADER: answers[0].receipt.version}
                return JSONResponse(completion(answers, logprobs), headers=headers)
            # What goes wrong before the first receipt still has a status of its own.
            first = await anext(turn)
        except NotFound as error:
            raise ModelNotFound(f"there is no model {request.model!r}") from error
        chunks = completion_chunks(first, turn, logprobs, include_usage=request.include_usage)
        return EventStream(chunks, {VERSION_HEADER: first.event.receipt.version})
