from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cli.checkpoint import ADAPTED, Checkpoint, require_usable
from thumbwheel.errors import SetupError

LLAMA = [f"model.layers.0.{name}.weight" for name in ADAPTED]


def write_tensors(folder: Path, names: Iterable[str]) -> None:
    """A safetensors file of empty tensors."""
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def checkpoint(folder: Path, tensors: Iterable[str] = LLAMA, **described: Any) -> Path:
    """Everything that can be seen of a checkpoint without loading it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    write_tensors(folder, tensors)
    return folder


def usable(folder: Path, gpus: int = 1, full_precision: Path | None = None, whole: bool = True) -> None:
    other = Checkpoint(full_precision, "model.full_precision = full") if full_precision else None
    require_usable(Checkpoint(folder, "model.path = mine", whole), other, gpus)


def test_tiny_model_is_usable(tiny_model: Path) -> None:
    usable(tiny_model)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}, "an encoder and a decoder"),
        ({"vision_config": {}, "architectures": ["LlavaForConditionalGeneration"]}, "more than text"),
        ({"audio_config": {}}, "more than text"),
        ({"architectures": ["BertModel"]}, "BertModel writes no text"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised \(bitsandbytes\)"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"quantised \(fp8\)"),
    ],
)
def test_model_of_another_kind_is_refused(tmp_path: Path, described: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        usable(checkpoint(tmp_path, **described))


@pytest.mark.parametrize(
    ("tensors", "lacking"),
    [
        (["transformer.h.0.attn.c_attn.weight"], "self_attn.q_proj"),
        (["gpt_neox.layers.0.attention.query_key_value.weight"], "self_attn.q_proj"),
        ([*LLAMA[3:], "model.layers.0.self_attn.qkv_proj.weight"], "self_attn.q_proj, self_attn.k_proj"),
        ([*LLAMA[:4], "model.layers.0.mlp.experts.0.gate_proj.weight"], "mlp.gate_proj"),
    ],
    ids=["gpt2", "gpt-neox", "phi3", "experts"],
)
def test_layers_that_adapters_do_not_fit_are_refused(tmp_path: Path, tensors: list[str], lacking: str) -> None:
    with pytest.raises(SetupError, match=f"no {lacking}.*\n.*choose a dense model"):
        usable(checkpoint(tmp_path, tensors))


@pytest.mark.parametrize(("highest", "fits"), [(9, True), (10, False)])
@pytest.mark.parametrize("added", [True, False])
def test_tokenizer_must_not_know_more_than_the_model(tmp_path: Path, highest: int, fits: bool, added: bool) -> None:
    folder = checkpoint(tmp_path, vocab_size=10, tie_word_embeddings=True)
    tokens = {"model": {"vocab": {"a": 0 if added else highest}}, "added_tokens": [{"id": highest}] if added else []}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    if fits:
        usable(folder)
    else:
        with pytest.raises(SetupError, match="token 10, and the model only those below 10"):
            usable(folder)


def test_heads_must_be_shared_evenly(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, num_attention_heads=9)
    usable(folder, 3)
    with pytest.raises(SetupError, match="9 attention heads"):
        usable(folder, 2)


CUT = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 50) + b'{"half',
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", len(CUT)) + CUT + bytes(7),
    ],
)
def test_broken_weights_are_named(tmp_path: Path, content: bytes) -> None:
    (checkpoint(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(SetupError, match="no safetensors file, or only a part"):
        usable(tmp_path)


def test_broken_description_is_named(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "config.json").write_text("{")
    with pytest.raises(SetupError, match=r"config\.json is not JSON"):
        usable(tmp_path)


@pytest.mark.parametrize("whole", [True, False])
def test_layers_are_known_from_the_index_before_the_weights_are_fetched(tmp_path: Path, whole: bool) -> None:
    folder = checkpoint(tmp_path)
    (folder / "model.safetensors").rename(folder / "first.safetensors")
    index = {"weight_map": dict.fromkeys(LLAMA, "first.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    usable(folder, whole=whole)
    index["weight_map"].pop(LLAMA[0])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if whole:
        usable(folder)  # what is in the files counts
    else:
        with pytest.raises(SetupError, match=r"no self_attn\.q_proj"):
            usable(folder, whole=False)


def test_a_missing_part_of_the_weights_is_named(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    index = {"weight_map": {LLAMA[0]: "model.safetensors", LLAMA[1]: "second.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SetupError, match=r"second\.safetensors is not in it"):
        usable(folder)


QUANTISED = {"quantization_config": {"quant_method": "gptq"}, "hidden_size": 64, "vocab_size": 10}


def test_a_quantised_model_learns_with_the_one_that_it_was_made_from(tmp_path: Path) -> None:
    served = checkpoint(tmp_path / "small", ["model.layers.0.self_attn.q_proj.qweight"], **QUANTISED)
    usable(served, full_precision=checkpoint(tmp_path / "full", hidden_size=64, vocab_size=10, head_dim=32))


@pytest.mark.parametrize(
    ("tensors", "described", "message"),
    [
        (LLAMA, {"hidden_size": 128}, "full: its hidden_size is 128, and 64 that of model.path = mine"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, r"quantised too \(awq\)"),
        (LLAMA[1:], {}, "full: its layers have no self_attn.q_proj"),
    ],
    ids=["another", "quantised", "unlike llama"],
)
def test_what_a_quantised_model_was_not_made_from_is_refused(
    tmp_path: Path, tensors: list[str], described: dict[str, Any], message: str
) -> None:
    served = checkpoint(tmp_path / "small", [], **QUANTISED)
    with pytest.raises(SetupError, match=message):
        usable(served, full_precision=checkpoint(tmp_path / "full", tensors, **described))


def test_full_precision_beside_what_is_not_quantised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"model\.path = mine is not quantised"):
        usable(checkpoint(tmp_path / "mine"), full_precision=checkpoint(tmp_path / "full"))
