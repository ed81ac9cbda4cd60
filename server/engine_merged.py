"""vLLM with one set of full weights, the live version's, instead of adapters beside each other (``server.weights``).

No layer computes an adapter's share any more, and only the live version answers. What runs when it changes goes on
under the new weights; the chunks say from which token on. See ``engine_merged_worker`` for the other half.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from tempfile import TemporaryDirectory
from typing import Any

from server.engine import Chunk, SamplingSpec, Weights
from server.engine_vllm import VllmEngine
from thumbwheel.errors import AdapterRefused, Conflict, EngineDead, NotFound


@dataclass(slots=True)
class Running:
    """A request: how many tokens of each answer have been told, and where its weights changed.

    Attributes:
        changes: (name of the new version, first of its tokens by answer's index), oldest first. A greedy request is one
            answer for vLLM however many were asked for; its index is 0.
    """

    greedy: bool
    told: dict[int, int] = field(default_factory=dict)
    changes: list[tuple[str, Mapping[int, int]]] = field(default_factory=list)
    passed: dict[int, int] = field(default_factory=dict)
    """By answer: how many of `changes` its chunks have told."""

    def tell(self, chunk: Chunk) -> Chunk:
        """The chunk, with the changes that its tokens pass."""
        index, new = chunk.index, []
        first = self.told.get(index, 0)
        end = self.told[index] = first + len(chunk.token_ids)
        for name, tokens in self.changes[self.passed.get(index, 0) :]:
            at = tokens.get(0 if self.greedy else index, 0)
            if at >= end:
                break
            new.append((max(0, at - first), name))
        self.passed[index] = self.passed.get(index, 0) + len(new)
        return replace(chunk, changes=tuple(new)) if new else chunk


class MergedVllmEngine(VllmEngine):
    """Obeys ``engine.Engine``; `switch` decides what answers, whatever weights a request was begun with."""

    one_version = True

    def __init__(self, llm: Any, scratch: TemporaryDirectory[str], max_adapters: int) -> None:
        super().__init__(llm, scratch, max_adapters)
        self._serving = Weights("base", 0, None)
        self._switches = 0
        self._requests: dict[str, Running] = {}

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
        running = self._requests[request_id] = Running(greedy=sampling.temperature == 0)
        if weights != self._serving:  # it changed between the caller's choice and now
            running.changes.append((self._serving.name, {}))
        try:
            answers = super().generate(request_id, prompt_token_ids, sampling, n, weights, priority, tenant)
            async with aclosing(answers):
                async for chunk in answers:
                    yield running.tell(chunk)
        finally:
            del self._requests[request_id]

    def _cache_salt(self, weights: Weights, tenant: str) -> str:
        # A switch ends what may be shared, even if it is back to an older version: running answers have gone on
        # filling blocks under the old salt with what the new weights computed.
        return f"{self._serving.name}/{self._switches}/{tenant}"

    def _lora_request(self, weights: Weights) -> None:
        return None

    async def load(self, weights: Weights) -> None:
        """Merges an adapter's weights beside those that answer, one decoder layer between any two steps."""
        known = self._loaded.get(weights.adapter_id)
        if known is not None:
            if known != weights:
                raise Conflict(f"adapter id {weights.adapter_id} is {known.name} already")
            return
        assert len(self._loaded) < self._max_adapters, "more versions than places"
        try:
            for piece in range(await self._call("merged_pieces")):
                await self._call("merged_stage", weights.adapter_id, str(weights.path), piece)
        except EngineDead:
            raise
        except Exception as error:
            # vLLM hands every failure of the engine process over as a bare Exception.
            await self._call("merged_drop", weights.adapter_id)
            raise AdapterRefused("engine", f"version {weights.name} cannot be merged: {error}") from error
        self._loaded[weights.adapter_id] = weights

    async def unload(self, adapter_id: int) -> None:
        if self._loaded.pop(adapter_id, None) is not None:
            await self._call("merged_drop", adapter_id)

    async def switch(self, weights: Weights) -> None:
        if weights == self._serving:
            return
        if weights.adapter_id and self._loaded.get(weights.adapter_id) != weights:
            raise NotFound(f"version {weights.name} is not loaded")
        # vLLM works off what it is sent in the order of sending: requests begun before this line are under way when the
        # weights change, those begun after it come when they have.
        under_way = dict(self._requests)
        self._serving, self._switches = weights, self._switches + 1
        sampled = _by_answer(await self._call("merged_switch", weights.adapter_id), under_way)
        for request_id, running in under_way.items():
            running.changes.append((weights.name, sampled.get(request_id, {})))

    async def _call(self, method: str, *args: Any) -> Any:
        """Calls every worker's method between two steps; the first one's result."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return (await self._llm.collective_rpc(method, args=args))[0]
        except EngineDeadError as error:
            raise EngineDead("the engine's process is gone") from error


def _by_answer(sampled: Mapping[str, int], requests: Mapping[str, Running]) -> dict[str, dict[int, int]]:
    """Tokens by request and answer. vLLM's own ids are ``[INDEX_]REQUEST-RANDOM``."""
    found: dict[str, dict[int, int]] = {}
    for name, tokens in sampled.items():
        request_id = name.rpartition("-")[0]
        index = "0"
        if request_id not in requests:
            index, _, request_id = request_id.partition("_")
        if request_id in requests:
            found.setdefault(request_id, {})[int(index)] = tokens
    return found
