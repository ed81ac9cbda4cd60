"""What the files of a checkpoint say about whether it can be served and trained; no weight is read."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from thumbwheel.errors import SetupError

ADAPTED = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Matrices of a layer that an adapter changes."""

MAX_HEADER = 100 << 20
"""Bytes; safetensors' own bound."""


def require_usable(folder: Path, tensor_parallel: int) -> None:
    """
    Args:
        folder: of a checkpoint, with config.json and safetensors.
        tensor_parallel: GPUs that the engine is to span.

    Raises:
        SetupError: the model cannot be served, or an adapter cannot be trained on it; it says why and what can.
    """
    described = _json(folder / "config.json")
    _require_causal(folder, described)
    method = described.get("quantization_config")
    if method is not None:
        name = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else method
        raise _refused(
            folder,
            f"its weights are quantised ({name}), and the learner trains on full weights alone",
            "name the checkpoint that it was made from",
        )
    _require_layers(folder, _tensors(folder))
    _require_vocabulary(folder, described)
    heads = described.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor_parallel:
        raise SetupError(
            f"server.tensor_parallel = {tensor_parallel}: the model's {heads} attention heads cannot be shared evenly\n"
            f"  choose a divisor of {heads}"
        )


def _require_causal(folder: Path, described: dict[str, Any]) -> None:
    advice = "choose a causal chat model of text"
    if described.get("is_encoder_decoder"):
        raise _refused(folder, "it is an encoder and a decoder", advice)
    if odd := [key for key in ("vision_config", "audio_config") if key in described]:
        raise _refused(folder, f"it is made for more than text ({odd[0]} in config.json)", advice)
    architectures = described.get("architectures") or []
    if architectures and not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise _refused(folder, f"{architectures[0]} writes no text", advice)


def _require_layers(folder: Path, tensors: set[str]) -> None:
    lacking = [name for name in ADAPTED if f"model.layers.0.{name}.weight" not in tensors]
    if lacking:
        raise _refused(
            folder,
            f"its layers have no {', '.join(lacking)}, which adapters change (fused or other projections, or experts)",
            "choose a dense model whose layers are named as Llama's are, such as Llama, Qwen or SmolLM",
        )


def _require_vocabulary(folder: Path, described: dict[str, Any]) -> None:
    size, file = described.get("vocab_size"), folder / "tokenizer.json"
    if not isinstance(size, int) or not file.is_file():
        return
    tokenizer = _json(file)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    highest = max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or [])], default=-1)
    if highest >= size:
        raise _refused(
            folder,
            f"its tokenizer knows token {highest}, and the model only those below {size}",
            "take tokenizer and weights from the same checkpoint",
        )


def _tensors(folder: Path) -> set[str]:
    """Names of all tensors, from the headers."""
    return {name for file in sorted(folder.glob("*.safetensors")) for name in _header(file)} - {"__metadata__"}


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        try:
            (size,) = struct.unpack("<Q", opened.read(8))
            header = json.loads(opened.read(size)) if size <= MAX_HEADER else None
        except (struct.error, ValueError):
            header = None
    if not isinstance(header, dict):
        raise SetupError(f"model.path: {file} is no safetensors file, or only a part of one; fetch it again")
    return header


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"model.path: {file} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise SetupError(f"model.path: {file} holds no JSON object")
    return read


def _refused(folder: Path, why: str, advice: str) -> SetupError:
    return SetupError(f"model.path = {folder}: {why}\n  {advice}")
