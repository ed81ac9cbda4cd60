"""What a caller may ask of the sampler."""

from __future__ import annotations

import math

from server.engine import SamplingSpec
from thumbwheel import config
from thumbwheel.errors import InvalidInput
from thumbwheel_client.v1 import record_pb2

MAX_STOPS = 4
MAX_STOP_CHARS = 128
SEED_RANGE = 1 << 63
"""Seeds are taken modulo this, the range that every sampler accepts."""


def sampling_of(message: record_pb2.Sampling, field: str, limits: config.Server) -> SamplingSpec:
    """Fills the defaults in.

    Args:
        field: path of the message in the request, for errors.

    Raises:
        InvalidInput: names the value and its limit.
    """
    max_tokens = message.max_tokens if message.HasField("max_tokens") else limits.default_max_tokens
    if not 1 <= max_tokens <= limits.max_tokens:
        raise InvalidInput(f"{field}.max_tokens", f"{max_tokens}; must be 1 to {limits.max_tokens}")
    temperature = message.temperature if message.HasField("temperature") else limits.default_temperature
    if not (math.isfinite(temperature) and 0 <= temperature <= 2):
        raise InvalidInput(f"{field}.temperature", f"{temperature:g}; must be 0 to 2")
    top_p = message.top_p if message.HasField("top_p") else 1.0
    if not (math.isfinite(top_p) and 0 < top_p <= 1):
        raise InvalidInput(f"{field}.top_p", f"{top_p:g}; must be above 0 and at most 1")
    if len(message.stop) > MAX_STOPS:
        raise InvalidInput(f"{field}.stop", f"{len(message.stop)} strings; at most {MAX_STOPS}")
    for index, stop in enumerate(message.stop):
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidInput(f"{field}.stop[{index}]", f"{len(stop)} characters; must be 1 to {MAX_STOP_CHARS}")
    seed = message.seed % SEED_RANGE if message.HasField("seed") else None
    return SamplingSpec(max_tokens, temperature, top_p, tuple(message.stop), seed)


def sampling_message(spec: SamplingSpec) -> record_pb2.Sampling:
    """The parameters in force, for a record."""
    message = record_pb2.Sampling(
        max_tokens=spec.max_tokens, temperature=spec.temperature, top_p=spec.top_p, stop=spec.stop
    )
    if spec.seed is not None:
        message.seed = spec.seed
    return message
