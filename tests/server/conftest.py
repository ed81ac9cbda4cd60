"""The one real engine of a test session, and what can be put into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from server.engine import Engine
from server.engine_scripted import ScriptedEngine
from server.engine_vllm import start_engine
from thumbwheel.artifacts import model_digest, write_version
from thumbwheel.config import Config
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import record_pb2

Publish = Callable[..., Awaitable[record_pb2.VersionRecord]]
RegistryOf = Callable[[Config], AbstractAsyncContextManager[Registry]]


@pytest.fixture(scope="session")
async def engine(tiny_model: Path) -> AsyncIterator[Engine]:
    """vLLM with the tiny model; the one engine of a whole test session, so a test unloads what it loads."""
    engine = await start_engine(
        Config.model_validate(
            {
                "model": {"path": str(tiny_model)},
                "server": {"threads": 2, "kv_cache_bytes": 64 << 20, "max_sequences": 16, "max_adapters": 4},
            }
        )
    )
    yield engine
    await engine.close()


@pytest.fixture
async def server(settings: Callable[..., Config], run_server: Any) -> AsyncIterator[Any]:
    """A server as it comes, whose answers follow from the questions."""
    async with run_server(settings(), ScriptedEngine()) as running:
        yield running


class WriteAdapter(Protocol):
    def __call__(
        self,
        folder: Path,
        *,
        seed: int = 1,
        rank: int = 8,
        size: float = 0.05,
        tensors: Callable[[dict[str, NDArray[np.float32]]], None] = ...,
        **config: object,
    ) -> Path: ...


@pytest.fixture(scope="session")
def write_adapter(tiny_model: Path) -> WriteAdapter:
    """Writes a random adapter for the upper layer of the tiny model, in PEFT's format, and returns its folder.

    `tensors` may spoil the weights before they are written, keywords replace keys of adapter_config.json.
    """
    features = {"q_proj": (64, 64), "k_proj": (64, 32), "v_proj": (64, 32), "o_proj": (64, 64)}
    features |= {"gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}

    def write(
        folder: Path,
        *,
        seed: int = 1,
        rank: int = 8,
        size: float = 0.05,
        tensors: Callable[[dict[str, NDArray[np.float32]]], None] = lambda _: None,
        **config: object,
    ) -> Path:
        dice = np.random.default_rng(seed)
        weights = {}
        for kind, (width_in, width_out) in features.items():
            part = "self_attn" if kind in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            module = f"base_model.model.model.layers.1.{part}.{kind}"
            weights[f"{module}.lora_A.weight"] = dice.normal(0, size, (rank, width_in)).astype(np.float32)
            weights[f"{module}.lora_B.weight"] = dice.normal(0, size, (width_out, rank)).astype(np.float32)
        tensors(weights)
        declared = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(tiny_model),
            "r": rank,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": sorted(features),
            "layers_to_transform": [1],
            "layers_pattern": "layers",
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(declared | config), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def registry_of() -> RegistryOf:
    """A context manager: the registry of a configuration's store, as the learner has it beside the server."""

    @asynccontextmanager
    async def of(config: Config) -> AsyncIterator[Registry]:
        store = await Store.open(config.redis.url, config.redis.namespace)
        try:
            yield Registry(store)
        finally:
            await store.close()

    return of


@pytest.fixture
def publish(tmp_path: Path, write_adapter: Any, registry_of: RegistryOf) -> Publish:
    """Writes a random adapter as a version and registers it, as the learner does."""

    async def make(
        config: Config,
        name: str,
        seed: int = 1,
        state: int = record_pb2.VERSION_STATE_CANDIDATE,
        base: str = "",
        **adapter: Any,
    ) -> record_pb2.VersionRecord:
        source = write_adapter(tmp_path / "adapters" / name, seed=seed, **adapter)
        facts = {"base_digest": base or model_digest(Path(config.model.path))}
        path, digest = write_version(
            config.artifact_root, name, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True), facts
        )
        async with registry_of(config) as registry:
            return await registry.register(
                record_pb2.VersionRecord(name=name, state=state, parent="base", path=path, manifest_sha256=digest)  # type: ignore[arg-type]
            )

    return make
