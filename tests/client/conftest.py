"""A server whose answers are known, and what it has kept of the votes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from server.engine import Weights
from server.engine_scripted import ScriptedEngine
from thumbwheel.config import Config
from thumbwheel_client.v1 import feedback_pb2, record_pb2


def shout(weights: Weights, prompt: str, index: int) -> str:
    said = prompt.rpartition("<user>")[2].partition("\n")[0]
    return f"{said.upper()} ({index}) é🙂"


@pytest.fixture
def scripted() -> ScriptedEngine:
    """Answers are the last message in capitals, and the answer's index."""
    return ScriptedEngine(script=shout)


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any, scripted: ScriptedEngine) -> AsyncIterator[Any]:
    async with run_server(settings(max_sequences=4, max_queue=1), scripted) as running:
        yield running


Votes = Callable[..., Awaitable[list[record_pb2.VoteEvent]]]


@pytest.fixture
def votes(server: Any) -> Votes:
    """The current votes of a user, by kind."""

    async def listed(user: str = "ada") -> list[record_pb2.VoteEvent]:
        reply = await server.feedback.ListVotes(
            feedback_pb2.ListVotesRequest(), metadata=(("x-thumbwheel-user", user),), timeout=10
        )
        return sorted((vote.event for vote in reply.votes), key=lambda event: event.kind)

    return listed
