"""A turn's answers, gathered for callers who want them whole."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from server.turns import Told
from thumbwheel_client.v1.chat_pb2 import Finish, Receipt


@dataclass(slots=True)
class WholeAnswer:
    """One answer. `logprobs` are in nats, one for each of `token_ids`."""

    receipt: Receipt
    text: str = ""
    finish: Finish = field(default_factory=Finish)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


async def whole_answers(turn: AsyncGenerator[Told, None]) -> list[WholeAnswer]:
    """All answers of a turn, by index. Leaving early closes the turn."""
    answers: dict[int, WholeAnswer] = {}
    texts: dict[int, list[str]] = {}
    async with aclosing(turn):
        async for told in turn:
            event, index = told.event, told.event.index
            match event.WhichOneof("event"):
                case "receipt":
                    answers[index] = WholeAnswer(event.receipt)
                    texts[index] = []
                case "delta":
                    texts[index].append(event.delta)
                case _:
                    answers[index].finish = event.finish
            answers[index].token_ids.extend(told.token_ids)
            answers[index].logprobs.extend(told.logprobs)
    for index, answer in answers.items():
        answer.text = "".join(texts[index])
    return [answers[index] for index in sorted(answers)]
