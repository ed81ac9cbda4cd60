from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cli.checkpoint import ADAPTED, require_usable
from thumbwheel.errors import SetupError

LLAMA = [f"model.layers.0.{name}.weight" for name in ADAPTED]


def write_tensors(folder: Path, names: Iterable[str]) -> None:
    """A safetensors file of empty tensors."""
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def checkpoint(folder: Path, tensors: Iterable[str] = LLAMA, **described: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(described))
    write_tensors(folder, tensors)
    return folder


def test_tiny_model_is_usable(tiny_model: Path) -> None:
    require_usable(tiny_model, 1)


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
        require_usable(checkpoint(tmp_path, **described), 1)


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
        require_usable(checkpoint(tmp_path, tensors), 1)


@pytest.mark.parametrize(("highest", "fits"), [(9, True), (10, False)])
@pytest.mark.parametrize("added", [True, False])
def test_tokenizer_must_not_know_more_than_the_model(tmp_path: Path, highest: int, fits: bool, added: bool) -> None:
    folder = checkpoint(tmp_path, vocab_size=10, tie_word_embeddings=True)
    tokens = {"model": {"vocab": {"a": 0 if added else highest}}, "added_tokens": [{"id": highest}] if added else []}
    (folder / "tokenizer.json").write_text(json.dumps(tokens))
    if fits:
        require_usable(folder, 1)
    else:
        with pytest.raises(SetupError, match="token 10, and the model only those below 10"):
            require_usable(folder, 1)


def test_heads_must_be_shared_evenly(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, num_attention_heads=9)
    require_usable(folder, 3)
    with pytest.raises(SetupError, match="9 attention heads"):
        require_usable(folder, 2)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, struct.pack("<Q", 50) + b'{"half'])
def test_broken_weights_are_named(tmp_path: Path, content: bytes) -> None:
    (checkpoint(tmp_path) / "model.safetensors").write_bytes(content)
    with pytest.raises(SetupError, match="no safetensors file"):
        require_usable(tmp_path, 1)


def test_broken_description_is_named(tmp_path: Path) -> None:
    (checkpoint(tmp_path) / "config.json").write_text("{")
    with pytest.raises(SetupError, match=r"config\.json is not JSON"):
        require_usable(tmp_path, 1)
