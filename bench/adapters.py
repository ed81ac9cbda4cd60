"""Random adapters of a real shape, made known to a running server as any version is."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from thumbwheel.artifacts import model_digest, write_version
from thumbwheel.registry import Registry
from thumbwheel_client.v1 import record_pb2 as pb

RANK = 16


def write_adapter(model: Path, folder: Path, seed: int, size: float = 0.01) -> Path:
    """Writes LoRA of RANK on the upper half of a Llama's layers in PEFT's format; `size` is the weights' spread."""
    shape = json.loads((model / "config.json").read_text(encoding="utf-8"))
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]
    head = shape.get("head_dim") or hidden // shape["num_attention_heads"]
    queries, keys = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    matrices = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    upper: Sequence[int] = range(layers // 2, layers)
    dice = np.random.default_rng(seed)
    weights = {}
    for layer in upper:
        for name, (width_in, width_out) in matrices.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{module}.lora_A.weight"] = dice.normal(0, size, (RANK, width_in)).astype(np.float32)
            weights[f"{module}.lora_B.weight"] = dice.normal(0, size, (width_out, RANK)).astype(np.float32)
    declared = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(name.partition(".")[2] for name in matrices),
        "layers_to_transform": list(upper),
        "layers_pattern": "layers",
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(declared), encoding="utf-8")
    return folder


async def publish(registry: Registry, artifacts: Path, model: Path, name: str, seed: int) -> pb.VersionRecord:
    """A version with a random adapter, as a candidate that may be promoted."""
    facts = {"base_digest": model_digest(model), "parent": "base", "seed": seed}
    with tempfile.TemporaryDirectory() as scratch:
        source = write_adapter(model, Path(scratch), seed)

        def fill(target: Path) -> None:
            for file in source.iterdir():
                (target / file.name).write_bytes(file.read_bytes())

        path, digest = write_version(artifacts, name, fill, facts)
    return await registry.register(
        pb.VersionRecord(name=name, state=pb.VERSION_STATE_CANDIDATE, parent="base", path=path, manifest_sha256=digest)
    )
