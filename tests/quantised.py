"""Checkpoints of fewer bits, written as the tools do that people use, each beside what its weights amount to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Stored: TypeAlias = tuple[dict[str, Tensor], Tensor]
"""Tensors of a matrix by the ends of their names, and the matrix that they amount to."""

INT8: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True,
            },
        }
    },
}  # fmt: skip
"""As llm-compressor writes W8A8."""

GROUP = 32
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}


def write_int8(model: Path, folder: Path, amounts_to: Path) -> Path:
    """Writes 8 bits of weights, one scale a row, to `folder`, and the same in full precision to `amounts_to`."""

    def store(matrix: Tensor) -> Stored:
        scale = matrix.abs().amax(1, keepdim=True) / 127
        whole = (matrix / scale).round()
        return {"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale

    return _write(model, folder, amounts_to, INT8, store)


def write_gptq(model: Path, folder: Path, amounts_to: Path) -> Path:
    """Writes 4 bits of weights, a scale for every 32 of a row, to `folder`, and the same to `amounts_to`."""

    def store(matrix: Tensor) -> Stored:
        columns, rows = matrix.T.shape  # GPTQ keeps (in, out)
        grouped = matrix.T.reshape(columns // GROUP, GROUP, rows)
        scale = (grouped.abs().amax(1, keepdim=True) / 7).bfloat16().float()
        nibbles = ((grouped / scale).round() + 8).clamp(0, 15)
        return {
            "qweight": _packed(nibbles.reshape(columns, rows).int(), 0),
            "qzeros": _packed(torch.full((columns // GROUP, rows), 7, dtype=torch.int32), 1),
            "scales": scale.squeeze(1).half(),
            "g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
        }, ((nibbles - 8) * scale).reshape(columns, rows).T

    return _write(model, folder, amounts_to, GPTQ, store)


def _packed(nibbles: Tensor, dimension: int) -> Tensor:
    """Eight neighbours along a dimension in one int32, the first in the lowest bits."""
    eights = nibbles.unflatten(dimension, (-1, 8)).movedim(dimension + 1, -1).long()
    packed = (eights << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


def _write(
    model: Path, folder: Path, amounts_to: Path, method: dict[str, Any], store: Callable[[Tensor], Stored]
) -> Path:
    for copy in (folder, amounts_to):
        shutil.copytree(model, copy)
    tensors = load_file(model / "model.safetensors")
    plain = dict(tensors)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        stored, plain[name] = store(tensors.pop(name))
        tensors |= {name.removesuffix("weight") + kind: tensor.contiguous() for kind, tensor in stored.items()}
    described = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"quantization_config": method}
    (folder / "config.json").write_text(json.dumps(described), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    plain = {name: tensor.contiguous() for name, tensor in plain.items()}
    save_file(plain, amounts_to / "model.safetensors", metadata={"format": "pt"})
    return folder
