"""Adapters on a base of fewer bits: what the engine says is what that base and the adapter amount to."""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from server import engine_cpu_quantised
from server.engine import Engine, Weights
from server.engine_vllm import start_engine
from tests.processes import apart
from tests.quantised import write_gptq, write_int8
from tests.server.test_engine_vllm import BASE, logps, network, sample
from thumbwheel.config import Config
from thumbwheel.errors import SetupError

SERVER = {"threads": 2, "kv_cache_bytes": 64 << 20, "max_sequences": 16, "max_adapters": 3}


VNNI = "avx512_vnni" in engine_cpu_quantised.CPU_INFO.read_text(encoding="utf-8")


async def answered_as(meant: Callable[[Weights], Any], engine: Engine, adapter: Path, error: float) -> None:
    """
    Args:
        meant: base, or base and adapter, in full precision.
        error: nats that the log-probability of a token may be off, on average.
    """
    adapted = Weights("v1", 1, adapter)
    await engine.load(adapted)
    prompt = engine.render([("user", "Why?")])
    for weights, other in ((BASE, adapted), (adapted, BASE)):
        ids, logprobs = await sample(engine, "Why?", weights, temperature=1.0)
        said, expected = torch.tensor(logprobs), logps(meant(weights), prompt, ids)
        off = (said - expected).abs().mean()
        assert off < error
        assert off < (said - logps(meant(other), prompt, ids)).abs().mean() / 2, "base and adapter are mistaken"


def rounding(network: Any) -> Any:
    """The network with what enters its base's matrices rounded to 8 bits, token by token, as W8A8 says."""

    def round_input(module: Any, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        scale = inputs[0].abs().amax(-1, keepdim=True) / 127
        return (inputs[0] / scale).round() * scale

    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and name.removesuffix(".base_layer").endswith("_proj"):
            module.register_forward_pre_hook(round_input)
    return network


@asynccontextmanager
async def started(served: Path, full_precision: Path, dtype: str) -> AsyncIterator[Engine]:
    model = {"path": str(served), "full_precision": str(full_precision), "dtype": dtype}
    engine = await start_engine(Config.model_validate({"model": model, "server": SERVER}))
    try:
        yield engine
    finally:
        await engine.close()


def test_8_bits_and_an_adapter(tiny_model: Path, write_adapter: Callable[..., Path], tmp_path: Path) -> None:
    write_int8(tiny_model, tmp_path / "served", tmp_path / "plain")
    apart(eight_bits, tiny_model, tmp_path, write_adapter(tmp_path / "adapter", size=0.3))


async def eight_bits(full_precision: Path, folder: Path, adapter: Path) -> None:
    # Where the products overflow the answers are wrong, but not so wrong that base and adapter could be mistaken.
    engine_cpu_quantised.require_kernels = lambda quantization: None
    meant = functools.cache(lambda weights: rounding(network(folder / "plain", weights)))
    async with started(folder / "served", full_precision, "auto") as engine:
        await answered_as(meant, engine, adapter, 0.02 if VNNI else math.inf)


@pytest.mark.skipif(not VNNI, reason="vLLM computes 4-bit weights on CPUs with AVX-512")
def test_4_bits_and_an_adapter(tiny_model: Path, write_adapter: Callable[..., Path], tmp_path: Path) -> None:
    write_gptq(tiny_model, tmp_path / "served", tmp_path / "plain")
    apart(four_bits, tiny_model, tmp_path, write_adapter(tmp_path / "adapter", size=0.3))


async def four_bits(full_precision: Path, folder: Path, adapter: Path) -> None:
    meant = functools.cache(lambda weights: network(folder / "plain", weights))
    async with started(folder / "served", full_precision, "bfloat16") as engine:
        await answered_as(meant, engine, adapter, 0.1)


@pytest.mark.parametrize(("write", "dtype"), [(write_int8, "auto"), (write_gptq, "bfloat16")])
async def test_what_a_cpu_would_compute_wrongly_is_refused(
    write: Callable[..., Path], dtype: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = write(tiny_model, tmp_path / "served", tmp_path / "plain")
    (tmp_path / "cpuinfo").write_text("flags : fpu sse4_2 avx2 avx512f")
    monkeypatch.setattr(engine_cpu_quantised, "CPU_INFO", tmp_path / "cpuinfo")
    with pytest.raises(SetupError, match="this CPU cannot compute with them rightly"):
        async with started(served, tiny_model, dtype):
            pass


async def test_what_a_method_does_not_compute_in_is_said(tiny_model: Path, tmp_path: Path) -> None:
    served = write_gptq(tiny_model, tmp_path / "served", tmp_path / "plain")
    with pytest.raises(SetupError, match=r"float32 is not supported"):
        async with started(served, tiny_model, "auto"):
            pass
