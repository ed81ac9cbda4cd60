"""Simulated raters: they ask, judge by a taste, err now and then, and rate; all through the public API.

prompt → Chat (48 tokens, temperature 1) → taste(prompt, answer), flipped with probability `noise` → Rate
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import grpc

from cli.connection import CALL_SECONDS, CHAT_SECONDS, Services
from cli.patience import Patience
from cli.tastes import Taste
from thumbwheel.errors import ThumbwheelError
from thumbwheel_client.v1 import chat_pb2, feedback_pb2
from thumbwheel_client.v1 import record_pb2 as pb

MAX_TOKENS = 48
RATERS = 12
"""People that the raters pretend to be."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What one rater made of one answer."""

    prompt: str
    answer: str
    version: str
    liked: bool
    """What the taste says."""
    rated_up: bool
    """What the rater said, which noise may have flipped."""


@dataclass(slots=True)
class VersionTally:
    """Ratings of one version's answers."""

    ratings: int = 0
    liked: int = 0
    rated_up: int = 0

    @property
    def up_rate(self) -> float:
        """Share of answers that the taste likes."""
        return self.liked / self.ratings if self.ratings else 0.0


@dataclass(slots=True)
class Tally:
    """What has happened so far. `versions` is in the order in which they first answered."""

    ratings: int = 0
    unrated: int = 0
    """Answers that the server could not keep, and so nobody could rate."""
    versions: dict[str, VersionTally] = field(default_factory=dict)

    def add(self, judgement: Judgement) -> None:
        self.ratings += 1
        version = self.versions.setdefault(judgement.version, VersionTally())
        version.ratings += 1
        version.liked += judgement.liked
        version.rated_up += judgement.rated_up


class Raters:
    """A crowd with one taste. A seed fixes which prompts they ask, with which sampling seeds, and where they err.

    Several calls of `rate` go on where the last one ended.
    """

    def __init__(
        self,
        services: Services,
        taste: Taste,
        prompts: Sequence[str],
        noise: float,
        seed: int,
        concurrency: int,
        patience: Patience,
        on_rated: Callable[[Judgement], None] = lambda judgement: None,
    ) -> None:
        self.tally = Tally()
        self._services = services
        self._taste = taste
        self._prompts = prompts
        self._noise = noise
        self._seed = seed
        self._concurrency = concurrency
        self._patience = patience
        self._on_rated = on_rated
        self._asked = 0
        # Keys of another run with the same seed must not look like repeats of this one's.
        self._run = uuid.uuid4().hex

    async def rate(self, ratings: int) -> None:
        """Until so many more votes are durable.

        Raises:
            grpc.RpcError: a call failed for good, or for too long.
            SetupError: the taste failed.
        """
        goal = self.tally.ratings + ratings
        started = self.tally.ratings

        async def one_after_another() -> None:
            nonlocal started
            while started < goal:
                started += 1
                number, self._asked = self._asked, self._asked + 1
                judgement = await self._ask_and_rate(number)
                if judgement is None:
                    self.tally.unrated += 1
                    started -= 1
                else:
                    self.tally.add(judgement)
                    self._on_rated(judgement)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, ratings)):
                    group.create_task(one_after_another())
        except* (grpc.RpcError, ThumbwheelError) as errors:
            raise _first(errors) from None

    async def _ask_and_rate(self, number: int) -> Judgement | None:
        """One rating; None if the answer was not kept."""
        chance = random.Random(f"{self._seed}/{number}")
        index = self._prompt_index(number)
        prompt = self._prompts[index]
        metadata = self._services.identity(f"rater-{number % RATERS}")
        request = chat_pb2.ChatRequest(
            input=chat_pb2.ChatInput(
                messages=[pb.Message(role=pb.ROLE_USER, content=prompt)],
                sampling=pb.Sampling(max_tokens=MAX_TOKENS, temperature=1, top_p=1, seed=chance.getrandbits(32)),
                # One conversation a prompt: whoever holds out conversations then holds out prompts.
                conversation_id=f"simulate-{self._seed}-{index}",
            )
        )
        response = await self._patience.call(
            lambda: self._services.chat.Chat(request, timeout=CHAT_SECONDS, metadata=metadata)
        )
        answer = response.answers[0]
        if answer.finish.log_status == chat_pb2.LOG_STATUS_NOT_LOGGED:
            return None
        liked = self._taste(prompt, answer.text)
        up = liked != (chance.random() < self._noise)
        vote = feedback_pb2.RateRequest(
            response_id=answer.receipt.response_id,
            idempotency_key=f"simulate-{self._run}-{number}",
            thumb=pb.THUMB_UP if up else pb.THUMB_DOWN,
        )
        await self._patience.call(
            lambda: self._services.feedback.Rate(vote, timeout=CALL_SECONDS, metadata=metadata),
            # An answer that still waits for the store is not there to be rated before the store is back.
            also=(grpc.StatusCode.NOT_FOUND,) if answer.finish.log_status == chat_pb2.LOG_STATUS_PENDING else (),
        )
        return Judgement(prompt, answer.text, answer.receipt.version, liked, up)

    def _prompt_index(self, number: int) -> int:
        """Every prompt once before any comes again, in an order that changes each time."""
        round_, place = divmod(number, len(self._prompts))
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/round {round_}").shuffle(order)
        return order[place]


def _first(errors: BaseExceptionGroup[Exception]) -> Exception:
    """One of several raters' errors; the others say much the same."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
