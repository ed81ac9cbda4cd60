"""Fresh samples from the serving engine, over RolloutService."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from thumbwheel import config, tracing
from thumbwheel.secret_files import client_pem, read_secret
from thumbwheel_client.v1 import record_pb2, rollout_pb2, rollout_pb2_grpc

log = logging.getLogger("thumbwheel.learner.rollouts")

DEADLINE = 1800.0
"""Seconds for one call: at low priority a busy server may take its time."""
ATTEMPTS = 6
PROMPTS_PER_CALL = 256


@dataclass(frozen=True, slots=True)
class Sampled:
    """One sampled answer."""

    prompt: int
    token_ids: tuple[int, ...]
    logp: tuple[float, ...]
    text: str
    stopped: bool
    """Ended by the model, not by max_tokens."""


class Rollouts:
    """A client of the serving engine.

    Raises:
        SetupError: a file of [client] cannot be used.
    """

    def __init__(self, address: str, client: config.Client) -> None:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", 16 << 20),
            ("grpc.max_reconnect_backoff_ms", 2000),  # else a server that was away long is looked for minutes later
        ]
        if client.ca:
            if client.server_name:
                options.append(("grpc.ssl_target_name_override", client.server_name))
            credentials = grpc.ssl_channel_credentials(*client_pem(client))
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=options)
        self._metadata: tuple[tuple[str, str], ...] = ()
        if client.key_file:
            self._metadata = (("authorization", f"Bearer {read_secret(client.key_file, 'client.key_file')}"),)
        self._stub = rollout_pb2_grpc.RolloutServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def sample(
        self,
        version: str,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        seed: int,
        temperature: float = 1.0,
        n: int = 1,
    ) -> list[Sampled]:
        """Samples n answers to each prompt, ordered by prompt and sample.

        Raises:
            grpc.aio.AioRpcError: the server refuses, or stayed away for several attempts.
        """
        found: list[Sampled] = []
        for start in range(0, len(prompts), PROMPTS_PER_CALL):
            part = prompts[start : start + PROMPTS_PER_CALL]
            request = rollout_pb2.RolloutRequest(
                version=version,
                prompts=[rollout_pb2.TokenPrompt(token_ids=prompt) for prompt in part],
                sampling=record_pb2.Sampling(
                    max_tokens=max_tokens, temperature=temperature, top_p=1.0, seed=seed + start * n
                ),
                n=n,
            )
            found += [_rollout(reply, start) for reply in await self._call(request)]
        return found

    async def _call(self, request: rollout_pb2.RolloutRequest) -> list[rollout_pb2.RolloutResponse]:
        """Sampling has no side effect, so a call that a restart of the server broke is made again in whole."""
        metadata = self._metadata
        if traceparent := tracing.traceparent():
            metadata += (("traceparent", traceparent),)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                call = self._stub.Rollout(request, timeout=DEADLINE, wait_for_ready=True, metadata=metadata)
                replies = [reply async for reply in call]
                return sorted(replies, key=lambda reply: (reply.prompt_index, reply.sample_index))
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE or attempt == ATTEMPTS:
                    raise
                log.warning("rollout_retry", extra={"attempt": attempt, "detail": error.details()})
                await asyncio.sleep(2.0**attempt)
        raise AssertionError("unreachable")


def _rollout(reply: rollout_pb2.RolloutResponse, start: int) -> Sampled:
    return Sampled(
        start + reply.prompt_index,
        tuple(reply.token_ids),
        tuple(reply.logprobs),
        reply.text,
        reply.finish_reason == record_pb2.FINISH_REASON_STOP,
    )
