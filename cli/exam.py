"""Measures the live version: how often a taste likes its answers to held-out prompts, and what it still knows.

Nothing here is ever rated. The same seed samples with the same seeds, so two versions are compared on equal luck.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cli.connection import CHAT_SECONDS, Services
from cli.patience import Patience
from cli.tastes import Taste
from thumbwheel import competence
from thumbwheel_client.v1 import chat_pb2
from thumbwheel_client.v1 import record_pb2 as pb

MAX_TOKENS = 48
CONCURRENCY = 48
EXAMINER = "examiner"


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer to a held-out prompt."""

    prompt: str
    answer: str
    liked: bool


@dataclass(frozen=True, slots=True)
class Marks:
    """What a version showed."""

    version: str
    samples: tuple[Sample, ...]
    competence: float
    """Share of the plain questions that it answers right."""
    failures: int
    """Answers that ended otherwise than by a stop or at their length."""

    @property
    def up_rate(self) -> float:
        """Share of answers that the taste likes."""
        return sum(sample.liked for sample in self.samples) / len(self.samples)


class Exam:
    """The same questions and seeds every time it is taken."""

    def __init__(
        self, services: Services, taste: Taste, prompts: Sequence[str], samples: int, seed: int, patience: Patience
    ) -> None:
        self._services = services
        self._taste = taste
        self._prompts = prompts
        self._samples = samples
        self._seed = seed
        self._patience = patience

    @property
    def answers(self) -> int:
        """How many answers it takes."""
        return len(self._prompts) * self._samples + len(competence.questions())

    async def take(self, version: str, on_answer: Callable[[], None]) -> Marks:
        """Asks `version` everything.

        Raises:
            grpc.RpcError: a call failed for good.
            SetupError: the taste failed.
        """
        slots = asyncio.Semaphore(CONCURRENCY)

        failures = 0

        async def ask(text: str, sampling: pb.Sampling) -> chat_pb2.Answer:
            nonlocal failures
            async with slots:
                answer = await self._ask(version, text, sampling)
            failures += not ended_well(answer.finish, sampling.max_tokens)
            on_answer()
            return answer

        asked = [prompt for prompt in self._prompts for _ in range(self._samples)]
        samplings = [
            pb.Sampling(max_tokens=MAX_TOKENS, temperature=1, top_p=1, seed=self._seed * 1_000_003 + place)
            for place in range(len(asked))
        ]
        greedy = pb.Sampling(max_tokens=competence.MAX_TOKENS, temperature=0)
        questions = competence.questions()
        answers = await asyncio.gather(
            *(ask(prompt, sampling) for prompt, sampling in zip(asked, samplings, strict=True)),
            *(ask(question.text, greedy) for question in questions),
        )
        right = [competence.check(q, a.text) for q, a in zip(questions, answers[len(asked) :], strict=True)]
        samples = [
            Sample(prompt, answer.text, self._taste(prompt, answer.text))
            for prompt, answer in zip(asked, answers[: len(asked)], strict=True)
        ]
        return Marks(version, tuple(samples), sum(right) / len(right), failures)

    async def _ask(self, version: str, text: str, sampling: pb.Sampling) -> chat_pb2.Answer:
        request = chat_pb2.ChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=text)], sampling=sampling, version=version
            )
        )
        response = await self._patience.call(
            lambda: self._services.chat.Chat(request, timeout=CHAT_SECONDS, metadata=self._services.identity(EXAMINER))
        )
        return response.answers[0]


def ended_well(finish: chat_pb2.Finish, max_tokens: int) -> bool:
    """By its own end, or at the very length that was asked for; anything else was cut."""
    if finish.reason == pb.FINISH_REASON_STOP:
        return finish.usage.completion_tokens <= max_tokens
    return finish.reason == pb.FINISH_REASON_LENGTH and finish.usage.completion_tokens == max_tokens
