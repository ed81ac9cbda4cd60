"""A served thumbwheel and a terminal for it: real gRPC and a real store around an engine whose answers are known."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cli.connection import Door, Services, connect
from server.app import Addresses, serve
from server.engine import Weights
from server.engine_scripted import ScriptedEngine
from thumbwheel import artifacts
from thumbwheel.config import Config
from thumbwheel.registry import Registry
from thumbwheel.store import Store
from thumbwheel_client.v1 import record_pb2 as pb


@dataclass
class Served:
    """A running server, its engine, the store behind it, and stubs for it."""

    addresses: Addresses
    engine: ScriptedEngine
    registry: Registry
    services: Services
    config: Config

    async def forget_everything(self) -> None:
        """An empty store, as another installation's; the server finds no key of the old one."""
        store = await Store.open(self.config.redis.url, self.config.redis.namespace)
        await store.call("FLUSHALL")
        await store.close()

    async def publish(self, name: str) -> pb.VersionRecord:
        """A version that the server will load: a small random adapter on every matrix of the tiny model's top layer."""

        def fill(folder: Path) -> None:
            dice = np.random.default_rng(len(name))
            shapes = {"self_attn.q_proj": (64, 64), "mlp.down_proj": (128, 64)}
            tensors = {
                f"base_model.model.model.layers.1.{module}.lora_{side}.weight": dice.normal(0, 0.01, shape).astype("f4")
                for module, (width_in, width_out) in shapes.items()
                for side, shape in (("A", (4, width_in)), ("B", (width_out, 4)))
            }
            save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            modules = sorted(module.split(".")[1] for module in shapes)
            declared = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
            declared |= {"target_modules": modules, "layers_to_transform": [1], "layers_pattern": "layers"}
            (folder / "adapter_config.json").write_text(json.dumps(declared), encoding="utf-8")

        facts = {"base_digest": artifacts.model_digest(Path(self.config.model.path))}
        path, digest = artifacts.write_version(self.config.artifact_root, name, fill, facts)
        record = pb.VersionRecord(
            name=name,
            state=pb.VERSION_STATE_CANDIDATE,
            parent="base",
            path=path,
            manifest_sha256=digest,
            reasons=["win rate 0.61 [of 32]"],
            metrics={"kl_nats_per_sequence": 1.234, "reward_model_auc": 0.7, "win_rate": 0.61, "competence": 0.5},
        )
        return await self.registry.register(record)


@pytest.fixture
async def served(tmp_path: Path, redis_url: str, tiny_model: Path) -> AsyncIterator[Served]:
    """Answers are the prompt in capitals, under another version than the base with its name in front."""

    def script(weights: Weights, prompt: str, index: int) -> str:
        said = prompt.rpartition("<user>")[2].partition("\n")[0].upper()
        return said if weights.name == "base" else f"{weights.name}: {said}"

    config = Config.model_validate(
        {
            "data_dir": tmp_path / "data",
            "model": {"path": str(tiny_model)},
            "redis": {"url": redis_url},
            "server": {"grpc_port": 0, "admin_port": 0, "http_port": 0, "web_port": 0, "drain": 2},
        }
    )
    engine = ScriptedEngine(script=script)
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def start(_: Config) -> ScriptedEngine:
        return engine

    task = asyncio.create_task(serve(config, stop, ready.set_result, start))
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    addresses = ready.result()
    store = await Store.open(redis_url, config.redis.namespace)
    async with connect(Door(addresses.grpc, addresses.admin)) as services:
        yield Served(addresses, engine, Registry(store), services, config)
    stop.set()
    await task
    await store.close()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Thumbwheel = Callable[..., Awaitable[Done]]


@pytest.fixture
def thumbwheel(tmp_path: Path) -> Thumbwheel:
    """Runs the command in a process of its own, in an empty folder, with `typed` on its standard input."""

    async def run(*arguments: str, typed: str = "") -> Done:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "cli.main", *arguments,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path, env=os.environ | {"COLUMNS": "160"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(typed.encode()), 60)
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    return run
