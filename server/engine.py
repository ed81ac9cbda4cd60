"""What the serving half asks of an engine.

Two engines obey this protocol and pass the same tests: ``engine_vllm.VllmEngine``, and
``engine_scripted.ScriptedEngine``, which needs no model.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """How tokens are drawn; every default is already filled in."""

    max_tokens: int
    temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Weights:
    """A version as an engine knows it. The base model has adapter_id 0 and no path."""

    name: str
    adapter_id: int
    path: Path | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """What was sampled since the last chunk of the same answer.

    Attributes:
        index: which of the n answers.
        text: whole characters only; may be empty while a character or a stop string is incomplete.
        token_ids: every sampled token, an end-of-turn token included.
        logprobs: nats, one per token, as sampled (after temperature and top-p).
        finish: set on the answer's last chunk. "stop": an end-of-turn token or a stop string.
        changes: (place in token_ids, name of the version that sampled from there on), where weights changed under the
            answer.
    """

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish: Finish | None
    changes: tuple[tuple[int, str], ...] = ()


class Engine(Protocol):
    """Samples answers from a base model and from versions loaded beside it."""

    @property
    def one_version(self) -> bool:
        """Whether only the version last switched to answers, rather than any that is loaded."""

    @property
    def max_context(self) -> int:
        """Longest prompt plus answer, in tokens."""

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    def render(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Prompt token ids of (role, content) pairs through the model's chat template, answer opened.

        Raises:
            InvalidInput: the template does not take this order of roles.
        """

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, special ones left out."""

    def encode_answer(self, text: str) -> list[int]:
        """Tokens of an answer that says this and ends by itself: an end-of-turn token is the last one."""

    def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingSpec,
        n: int,
        weights: Weights,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[Chunk, None]:
        """Samples n answers, their chunks interleaved; each answer's last chunk has `finish`.

        Closing the generator or cancelling its consumer ends the engine's work on the request at once.

        Args:
            request_id: unique among running requests.
            prompt_token_ids: of the vocabulary and shorter than `max_context`; the answer ends with "length" where the
                context does.
            priority: lower goes first.
            tenant: only its own prompts are remembered for it; how fast an answer begins tells it nothing of others.

        Raises:
            NotFound: `weights` are not loaded.
            EngineDead: the engine is gone.
        """

    async def load(self, weights: Weights) -> None:
        """Makes an adapter usable beside the others while they serve. The caller has verified its files.

        Idempotent. Must not be called with more adapters than `server.max_adapters`.

        Raises:
            AdapterRefused: the engine could not read it.
            EngineDead: the engine is gone.
        """

    async def unload(self, adapter_id: int) -> None:
        """Frees the adapter's slot; nothing happens if it is not loaded."""

    async def switch(self, weights: Weights) -> None:
        """Makes `weights` answer from the next step on, running answers included, where only one version can.

        Elsewhere nothing happens. What is begun after the call counts as begun with the new weights.

        Raises:
            NotFound: `weights` are not loaded.
            EngineDead: the engine is gone.
        """

    async def forget_prompts(self) -> None:
        """Empties the prefix cache. Running answers go on, once their prompts have been read again.

        Raises:
            EngineDead: the engine is gone.
        """

    async def check(self) -> None:
        """
        Raises:
            EngineDead: the engine is gone; only a new process helps.
        """

    async def close(self) -> None:
        """Stops the engine and waits until its processes are gone. Running requests raise EngineDead."""
