"""What the files of a checkpoint say about whether it can be served and trained; no weight is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

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

SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
"""What a model and its quantised copy have in common, besides their words."""

PARTS = {
    ("config.json",): "a Hugging Face checkpoint has one",
    ("*.safetensors",): "only safetensors weights are loaded",
    ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"): "its tokenizer",
}
"""Files of which one has to be there, and what for."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A Hugging Face checkpoint."""

    folder: Path
    named: str
    """How the configuration names it, for errors: "model.path = owner/name"."""
    whole: bool = True
    """False: its weights have not been fetched yet."""


def require_usable(served: Checkpoint, full_precision: Checkpoint | None, tensor_parallel: int) -> None:
    """
    Args:
        served: what the engine loads.
        full_precision: what that was made from, if it is quantised.
        tensor_parallel: GPUs that the engine is to span.

    Raises:
        SetupError: the model cannot be served, or an adapter cannot be trained on it; it says why and what can.
    """
    _require_parts(served)
    _require_template(served)
    described = _described(served)
    _require_causal(served, described)
    _require_vocabulary(served, described)
    heads = described.get("num_attention_heads")
    if isinstance(heads, int) and heads % tensor_parallel:
        raise SetupError(
            f"server.tensor_parallel = {tensor_parallel}: the model's {heads} attention heads cannot be shared evenly\n"
            f"  choose a divisor of {heads}"
        )
    method = quantisation(served)
    if full_precision is not None:
        if method is None:
            raise _refused(full_precision, f"{served.named} is not quantised and learns itself", "leave it empty")
        _require_parts(full_precision)
        _require_twin(served, full_precision)
    elif method is not None:
        raise _refused(
            served,
            f"its weights are quantised ({method}), and the learner trains on full weights alone",
            "set model.full_precision to the checkpoint that it was made from",
        )
    _require_layers(full_precision or served)


def quantisation(checkpoint: Checkpoint) -> str | None:
    """By which method its weights are quantised; None if they are not."""
    declared = _described(checkpoint).get("quantization_config")
    if declared is None:
        return None
    return str(declared.get("quant_method", "an unnamed method") if isinstance(declared, dict) else declared)


def _require_parts(checkpoint: Checkpoint) -> None:
    for names, what in PARTS.items():
        if names == ("*.safetensors",) and not checkpoint.whole:
            continue
        if not any(any(checkpoint.folder.glob(name)) for name in names):
            raise SetupError(f"{checkpoint.named}: no {' or '.join(names)} in it ({what})")


def _require_template(checkpoint: Checkpoint) -> None:
    file = checkpoint.folder / "tokenizer_config.json"
    declared = _json(file) if file.is_file() else {}
    if "chat_template" not in declared and not any(checkpoint.folder.glob("chat_template*")):
        raise SetupError(f"{checkpoint.named}: its tokenizer has no chat template; choose an instruct or chat model")


def _require_twin(served: Checkpoint, full_precision: Checkpoint) -> None:
    """The same model twice, as far as descriptions tell."""
    if method := quantisation(full_precision):
        raise _refused(full_precision, f"it is quantised too ({method})", "name the checkpoint in full precision")
    one, other = _described(served), _described(full_precision)
    for key in SHAPE:
        if key in one and key in other and one[key] != other[key]:
            raise _refused(
                full_precision,
                f"its {key} is {other[key]}, and {one[key]} that of {served.named}",
                "name the checkpoint that the quantised one was made from",
            )


def _require_causal(checkpoint: Checkpoint, described: dict[str, Any]) -> None:
    advice = "choose a causal chat model of text"
    if described.get("is_encoder_decoder"):
        raise _refused(checkpoint, "it is an encoder and a decoder", advice)
    if odd := [key for key in ("vision_config", "audio_config") if key in described]:
        raise _refused(checkpoint, f"it is made for more than text ({odd[0]} in config.json)", advice)
    architectures = described.get("architectures") or []
    if architectures and not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in architectures):
        raise _refused(checkpoint, f"{architectures[0]} writes no text", advice)


def _require_layers(checkpoint: Checkpoint) -> None:
    tensors = _tensors(checkpoint)
    if tensors is None:
        return
    lacking = [name for name in ADAPTED if f"model.layers.0.{name}.weight" not in tensors]
    if lacking:
        raise _refused(
            checkpoint,
            f"its layers have no {', '.join(lacking)}, which adapters change (fused or other projections, or experts)",
            "choose a dense model whose layers are named as Llama's are, such as Llama, Qwen or SmolLM",
        )


def _require_vocabulary(checkpoint: Checkpoint, described: dict[str, Any]) -> None:
    size, file = described.get("vocab_size"), checkpoint.folder / "tokenizer.json"
    if not isinstance(size, int) or not file.is_file():
        return
    tokenizer = _json(file)
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
    highest = max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or [])], default=-1)
    if highest >= size:
        raise _refused(
            checkpoint,
            f"its tokenizer knows token {highest}, and the model only those below {size}",
            "take tokenizer and weights from the same checkpoint",
        )


def _tensors(checkpoint: Checkpoint) -> set[str] | None:
    """Names of all tensors; None if they stand in headers of weights that are still to be fetched."""
    folder, index = checkpoint.folder, checkpoint.folder / "model.safetensors.index.json"
    listed = _json(index).get("weight_map", {}) if index.is_file() else {}
    if not checkpoint.whole:
        return set(listed) or None
    if missing := sorted({file for file in listed.values() if not (folder / file).is_file()}):
        raise SetupError(f"{checkpoint.named}: {missing[0]} is not in it, which its index names; fetch it again")
    return {name for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}


def _names(file: Path) -> set[str]:
    """Of a file's tensors, by its header."""
    try:
        with safe_open(file, "numpy") as opened:
            return set(opened.keys())
    except SafetensorError as error:
        raise SetupError(f"{file} is no safetensors file, or only a part of one ({error}); fetch it again") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SetupError(f"{file} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise SetupError(f"{file} holds no JSON object")
    return read


def _described(checkpoint: Checkpoint) -> dict[str, Any]:
    return _json(checkpoint.folder / "config.json")


def _refused(checkpoint: Checkpoint, why: str, advice: str) -> SetupError:
    return SetupError(f"{checkpoint.named}: {why}\n  {advice}")
