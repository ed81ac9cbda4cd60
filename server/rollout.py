"""RolloutService: samples for the learner, in places that nobody needs."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from grpc import aio

from server.admission import Admission
from server.engine import Engine, SamplingSpec, Weights
from server.sampling import SEED_RANGE, sampling_of
from server.streams import stream
from server.turns import REASONS
from server.versions import Reach, Versions
from thumbwheel import config
from thumbwheel.errors import InvalidInput, NotReady
from thumbwheel_client.v1 import rollout_pb2, rollout_pb2_grpc

MAX_SAMPLES = 4096
PRIORITY = 1
"""Behind chat, which has 0."""

Emit = Callable[[rollout_pb2.RolloutResponse], None]


class RolloutService(rollout_pb2_grpc.RolloutServiceServicer):
    """Samples under any version that is not rejected. Nothing is logged as a turn."""

    def __init__(self, engine: Engine, versions: Versions, admission: Admission, limits: config.Server) -> None:
        self._engine = engine
        self._versions = versions
        self._admission = admission
        self._limits = limits

    async def Rollout(
        self, request: rollout_pb2.RolloutRequest, context: aio.ServicerContext[Any, Any]
    ) -> AsyncGenerator[rollout_pb2.RolloutResponse, None]:
        sampling = self._check(request)
        async with aclosing(self._samples(request, sampling)) as samples:
            async for sample in samples:
                yield sample

    def _samples(
        self, request: rollout_pb2.RolloutRequest, sampling: SamplingSpec
    ) -> AsyncGenerator[rollout_pb2.RolloutResponse, None]:
        return stream(lambda emit: self._run(request, sampling, emit))

    def _check(self, request: rollout_pb2.RolloutRequest) -> SamplingSpec:
        if not request.version:
            raise InvalidInput("version", "empty; name the version to sample from")
        samples = len(request.prompts) * (request.n or 1)
        if not 1 <= samples <= MAX_SAMPLES:
            raise InvalidInput("prompts", f"{samples} samples; must be 1 to {MAX_SAMPLES}")
        sampling = sampling_of(request.sampling, "sampling", self._limits)
        room = self._engine.max_context - sampling.max_tokens
        for index, prompt in enumerate(request.prompts):
            if not 1 <= len(prompt.token_ids) <= room:
                raise InvalidInput(
                    f"prompts[{index}].token_ids",
                    f"{len(prompt.token_ids)} tokens; must be 1 to {room}, so that max_tokens fit the context",
                )
            if max(prompt.token_ids) >= self._engine.vocabulary:
                raise InvalidInput(
                    f"prompts[{index}].token_ids",
                    f"{max(prompt.token_ids)}; the vocabulary has {self._engine.vocabulary} tokens",
                )
        return sampling

    async def _run(self, request: rollout_pb2.RolloutRequest, sampling: SamplingSpec, emit: Emit) -> None:
        n = request.n or 1
        wanted = iter([(index, sample) for index in range(len(request.prompts)) for sample in range(n)])

        async def sampler() -> None:
            for index, sample in wanted:
                spec = sampling
                if sampling.seed is not None:
                    spec = replace(sampling, seed=(sampling.seed + index * n + sample) % SEED_RANGE)
                blank = rollout_pb2.RolloutResponse(prompt_index=index, sample_index=sample)
                await self._sample(list(request.prompts[index].token_ids), spec, weights, blank, emit)

        # Held for the whole call: the version stays loaded between samples.
        async with self._versions.use(request.version, Reach.LEARNER) as weights:
            try:
                async with asyncio.TaskGroup() as samplers:
                    # No more than can run: thousands of waiting samples, cancelled at once, would hold up everybody.
                    for _ in range(min(self._limits.rollout_sequences, len(request.prompts) * n)):
                        samplers.create_task(sampler())
            except ExceptionGroup as group:
                raise group.exceptions[0] from None

    async def _sample(
        self,
        prompt: list[int],
        sampling: SamplingSpec,
        weights: Weights,
        blank: rollout_pb2.RolloutResponse,
        emit: Emit,
    ) -> None:
        """One sample; from the start again each time chat took its place."""
        while (done := await self._admission.rollout(self._generate(prompt, sampling, weights, blank))) is None:
            pass
        emit(done)

    async def _generate(
        self, prompt: list[int], sampling: SamplingSpec, weights: Weights, blank: rollout_pb2.RolloutResponse
    ) -> rollout_pb2.RolloutResponse:
        sample = rollout_pb2.RolloutResponse()
        sample.CopyFrom(blank)
        chunks = self._engine.generate(f"r{secrets.token_hex(12)}", prompt, sampling, 1, weights, PRIORITY)
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.changes:
                    raise NotReady(f"version {weights.name} is not live any more; part of a sample is another's")
                sample.text += chunk.text
                sample.token_ids.extend(chunk.token_ids)
                sample.logprobs.extend(chunk.logprobs)
                if chunk.finish:
                    sample.finish_reason = REASONS[chunk.finish]
        return sample
