"""An engine without a model: tokens are bytes and answers follow from their inputs, so tests can predict them.

It obeys ``engine.Engine`` to the letter (the same tests run on it and on vLLM) and takes milliseconds to start.
"""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import random
from collections.abc import AsyncGenerator, Callable, Sequence

from server.engine import Chunk, Finish, SamplingSpec, Weights
from thumbwheel.errors import Conflict, EngineDead, NotFound

EOS = 256
WORDS = ("the", "wheel", "turns", "a", "little", "more", "café", "naïve", "日本語", "🙂", "and", "again", "you")

Script = Callable[[Weights, str, int], str]
"""(weights, prompt text, index of the answer) -> the whole answer."""


class ScriptedEngine:
    """Deterministic: the same weights, prompt, seed and index give the same answer.

    Args:
        max_context: longest prompt plus answer, in tokens, that is bytes.
        max_adapters: more loaded at once is a programming error of the caller.
        script: replaces the built-in answers.
        token_seconds: pause before each token; 0 only yields to the event loop.
    """

    one_version = False

    def __init__(
        self,
        max_context: int = 4096,
        max_adapters: int = 6,
        script: Script | None = None,
        token_seconds: float = 0.0,
    ) -> None:
        self.running: set[str] = set()
        self.loaded: dict[int, Weights] = {}
        self.forgotten = 0
        self.resume = asyncio.Event()
        self.resume.set()
        self._max_context = max_context
        self._max_adapters = max_adapters
        self.script = script
        self._token_seconds = token_seconds
        self._dead = False

    @property
    def max_context(self) -> int:
        return self._max_context

    @property
    def vocabulary(self) -> int:
        return EOS + 1

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return frozenset({EOS})

    def render(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        return list("".join(f"<{role}>{content}\n" for role, content in messages).encode() + b"<assistant>")

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token for token in token_ids if token != EOS).decode(errors="replace")

    def encode_answer(self, text: str) -> list[int]:
        return [*text.encode(), EOS]

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingSpec,
        n: int,
        weights: Weights,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[Chunk, None]:
        await self.check()
        if weights.adapter_id and self.loaded.get(weights.adapter_id) != weights:
            raise NotFound(f"version {weights.name} is not loaded")
        room = min(sampling.max_tokens, self._max_context - len(prompt_token_ids))
        answers = {index: self._answer(prompt_token_ids, sampling, index, weights, room) for index in range(n)}
        self.running.add(request_id)
        try:
            while answers:
                for index, chunks in list(answers.items()):
                    await asyncio.sleep(self._token_seconds)
                    await self.resume.wait()
                    await self.check()
                    chunk = chunks.pop(0)
                    if not chunks:
                        del answers[index]
                    yield chunk
        finally:
            self.running.discard(request_id)

    def _answer(
        self, prompt: Sequence[int], sampling: SamplingSpec, index: int, weights: Weights, room: int
    ) -> list[Chunk]:
        """The whole answer as chunks of one token."""
        greedy = sampling.temperature == 0
        key = (weights.name, weights.adapter_id, tuple(prompt), None if greedy else (sampling.seed, index))
        dice = random.Random(hashlib.sha256(repr(key).encode()).digest())
        if self.script is not None:
            answer = self.script(weights, self.decode(prompt), index)
        else:
            answer = " ".join([weights.name, *dice.choices(WORDS, k=dice.randint(3, 12))])
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, sent, chunks = "", 0, []
        hold = max((len(stop) for stop in sampling.stop), default=1) - 1
        for position, token in enumerate([*answer.encode(), EOS], start=1):
            text += decoder.decode(bytes([token])) if token != EOS else ""
            finish: Finish | None = "stop" if token == EOS else "length" if position == room else None
            cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=-1)
            if cut >= 0:
                text, finish = text[:cut], "stop"
            until = len(text) if finish else max(sent, len(text) - hold)
            logprob = 0.0 if greedy else -dice.random()
            chunks.append(Chunk(index, text[sent:until], [token], [logprob], finish))
            sent = until
            if finish:
                break
        return chunks

    async def load(self, weights: Weights) -> None:
        await self.check()
        if self.loaded.setdefault(weights.adapter_id, weights) != weights:
            raise Conflict(f"adapter id {weights.adapter_id} is {self.loaded[weights.adapter_id].name} already")
        assert len(self.loaded) <= self._max_adapters, "more adapters than slots"

    async def unload(self, adapter_id: int) -> None:
        self.loaded.pop(adapter_id, None)

    async def switch(self, weights: Weights) -> None:
        await self.check()
        if weights.adapter_id and self.loaded.get(weights.adapter_id) != weights:
            raise NotFound(f"version {weights.name} is not loaded")

    def die(self) -> None:
        """From now on this engine behaves like one whose process is gone."""
        self._dead = True
        self.resume.set()

    async def forget_prompts(self) -> None:
        await self.check()
        self.forgotten += 1

    async def check(self) -> None:
        if self._dead:
            raise EngineDead("the engine's process is gone")

    async def close(self) -> None:
        self.die()
