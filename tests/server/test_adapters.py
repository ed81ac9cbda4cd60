"""Every way in which an adapter can be wrong, each with the reason it is refused for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from server.adapters import CONFIG, WEIGHTS, BaseShape, read_header, verify
from thumbwheel.artifacts import model_digest
from thumbwheel.config import Server
from thumbwheel.errors import AdapterRefused

LIMITS = Server(max_lora_rank=16, max_update_norm=0.5)
PREFIX = "base_model.model.model.layers.1"
A, B = f"{PREFIX}.self_attn.q_proj.lora_A.weight", f"{PREFIX}.self_attn.q_proj.lora_B.weight"

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tiny_model: Path) -> BaseShape:
    return BaseShape.read(tiny_model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "version"


def refusal(folder: Path, base: BaseShape, digest: str | None = None) -> str:
    with pytest.raises(AdapterRefused) as refused:
        verify(folder, {"base_digest": digest or base.digest}, base, LIMITS)
    assert str(refused.value)
    return refused.value.reason


def test_a_sound_adapter_passes(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    verify(write_adapter(folder), {"base_digest": base.digest}, base, LIMITS)


def test_what_the_learner_keeps_beside_it_passes(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    write_adapter(folder)
    (folder / "manifest.json").write_text("{}")
    (folder / "training").mkdir()
    (folder / "training" / "value_head.safetensors").write_bytes(b"anything")
    verify(folder, {"base_digest": base.digest}, base, LIMITS)


def test_what_peft_itself_writes_passes(folder: Path, base: BaseShape, tiny_model: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        peft.LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "down_proj"],
            layers_to_transform=[1],
            layers_pattern="layers",
            task_type=peft.TaskType.CAUSAL_LM,
        ),
    )
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    verify(folder, {"base_digest": base.digest}, base, LIMITS)


def test_half_precision_passes(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    write_adapter(folder)
    save_file({k: v.astype(np.float16) for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    verify(folder, {"base_digest": base.digest}, base, LIMITS)


@pytest.mark.parametrize("name", [A, B])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(write_adapter: Write, folder: Path, base: BaseShape, name: str, value: float) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        tensors[name][3, 2] = value

    assert refusal(write_adapter(folder, tensors=spoil), base) == "not_finite"


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),  # vLLM would serve the base in silence
        lambda key: key.replace("layers.1", "layers.0"),
        lambda key: key.replace("lora_A", "lora_A.default"),
        lambda key: key.replace("q_proj", "embed_tokens"),
    ],
)
def test_keys_must_be_the_base_s(
    write_adapter: Write, folder: Path, base: BaseShape, rename: Callable[[str], str]
) -> None:
    def spoil(tensors: dict[str, Any]) -> None:
        for key in list(tensors):
            tensors[rename(key)] = tensors.pop(key)

    assert refusal(write_adapter(folder, tensors=spoil), base) == "keys"


def test_no_tensor_may_be_missing(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    assert refusal(write_adapter(folder, tensors=lambda tensors: tensors.pop(B)), base) == "keys"
    assert refusal(write_adapter(folder, layers_to_transform=[0, 1]), base) == "keys"
    assert refusal(write_adapter(folder, layers_to_transform=None), base) == "keys"


def test_no_tensor_may_be_there_beside(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.lm_head.weight"] = np.zeros((2, 2), np.float32)

    assert refusal(write_adapter(folder, tensors=add), base) == "keys"
    assert refusal(write_adapter(folder, target_modules=["q_proj"]), base) == "keys"


def test_the_rank_must_be_the_tensors_own(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    assert refusal(write_adapter(folder, r=4), base) == "shape"

    def cut(tensors: dict[str, Any]) -> None:
        tensors[B] = np.ascontiguousarray(tensors[B][:, :5])

    assert refusal(write_adapter(folder, tensors=cut), base) == "shape"


def test_shapes_must_be_the_base_s(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    def flip(tensors: dict[str, Any]) -> None:
        tensors[A] = np.ascontiguousarray(tensors[A].T)

    assert refusal(write_adapter(folder, tensors=flip), base) == "shape"


def test_the_rank_has_a_bound(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    verify(write_adapter(folder, rank=16), {"base_digest": base.digest}, base, LIMITS)
    assert refusal(write_adapter(folder, rank=17), base) == "rank"


def test_other_types_than_floats_are_refused(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    def cast(tensors: dict[str, Any]) -> None:
        tensors[A] = tensors[A].astype(np.int32)

    assert refusal(write_adapter(folder, tensors=cast), base) == "dtype"


def test_the_update_has_a_bound_in_the_matrix_norm(
    write_adapter: Write, folder: Path, base: BaseShape, tiny_model: Path
) -> None:
    weight = load_file(tiny_model / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]

    def of_norm(share: float) -> Callable[[dict[str, Any]], None]:
        def scale(tensors: dict[str, Any]) -> None:
            for key in tensors:
                if "lora_B" in key and key != B:
                    tensors[key][:] = 0
            norm = np.linalg.norm(2.0 * tensors[B].astype(np.float64) @ tensors[A])  # alpha / rank is 2
            tensors[B] *= share * np.linalg.norm(weight.astype(np.float64)) / norm

        return scale

    verify(write_adapter(folder, tensors=of_norm(0.499)), {"base_digest": base.digest}, base, LIMITS)
    assert refusal(write_adapter(folder, tensors=of_norm(0.501)), base) == "norm"
    assert refusal(write_adapter(folder, tensors=of_norm(0.499), lora_alpha=17), base) == "norm"


def test_the_largest_floats_are_refused_for_their_norm(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    def blow_up(tensors: dict[str, Any]) -> None:
        for key in tensors:
            tensors[key][:] = np.finfo(np.float32).max

    assert refusal(write_adapter(folder, tensors=blow_up), base) == "norm"


def test_the_base_must_be_the_one_it_was_trained_on(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    write_adapter(folder)
    assert refusal(folder, base, digest="0" * 64) == "base_digest"
    with pytest.raises(AdapterRefused) as refused:
        verify(folder, {}, base, LIMITS)
    assert refused.value.reason == "base_digest"


@pytest.mark.parametrize("keep", [0, 4, 8, 200, -1])
def test_a_truncated_file_is_refused(write_adapter: Write, folder: Path, base: BaseShape, keep: int) -> None:
    write_adapter(folder)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:keep])
    assert refusal(folder, base) == "truncated"


def test_bytes_after_the_tensors_are_refused(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    write_adapter(folder)
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"x")
    assert refusal(folder, base) == "header"


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "adapter_model.pt", "tokenizer.json", "new_embeddings.safetensors"]
)
def test_files_that_do_not_belong_are_refused(write_adapter: Write, folder: Path, base: BaseShape, name: str) -> None:
    write_adapter(folder)
    (folder / name).write_bytes(b"\x80\x04.")
    assert refusal(folder, base) == "unexpected_file"


def test_a_pickle_instead_is_refused(write_adapter: Write, folder: Path, base: BaseShape) -> None:
    write_adapter(folder)
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert refusal(folder, base) == "unexpected_file"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_missing_files_are_said(write_adapter: Write, folder: Path, base: BaseShape, name: str) -> None:
    write_adapter(folder)
    (folder / name).unlink()
    assert refusal(folder, base) == "missing_file"


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_links_are_refused(write_adapter: Write, folder: Path, base: BaseShape, name: str, tmp_path: Path) -> None:
    write_adapter(folder)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    assert refusal(folder, base) == "symlink"


def packed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (packed(b"", length=2**63), "truncated"),
        (packed(b" " * ((1 << 20) + 1)), "header"),
        (packed(b"not json"), "header"),
        (packed(b"[" * 100_000), "header"),
        (packed(b"[]"), "header"),
        (packed(b'{"x": 1}'), "header"),
        (packed(b'{"x": {"dtype": "F32"}}'), "header"),
        (packed(b'{"x": {}, "x": {}}'), "header"),
        (packed(entry(dtype=["F32"]), b"1234"), "header"),
        (packed(entry(dtype="PICKLE"), b"1234"), "header"),
        (packed(entry(shape=[-1, -1]), b"1234"), "header"),
        (packed(entry(shape=[True]), b"1234"), "header"),
        (packed(entry(shape="1"), b"1234"), "header"),
        (packed(entry(shape=[1e0]), b"1234"), "header"),
        (packed(entry(shape=[2]), b"1234"), "header"),
        (packed(entry(shape=[2**62, 2**62]), b"1234"), "header"),
        (packed(entry(offsets=[4, 8]), b"12345678"), "header"),
        (packed(entry(offsets=[-4, 0]), b"1234"), "header"),
        (packed(entry(offsets=[0]), b"1234"), "header"),
        (packed(entry(shape=[2], offsets=[0, 8]), b"1234"), "truncated"),
        (
            packed(
                b'{"x": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},'
                b' "y": {"dtype": "U8", "shape": [4], "data_offsets": [2, 6]}}',
                b"123456",
            ),
            "header",
        ),
    ],
)
def test_absurd_headers_are_refused(
    write_adapter: Write, folder: Path, base: BaseShape, content: bytes, reason: str
) -> None:
    write_adapter(folder)
    (folder / WEIGHTS).write_bytes(content)
    assert refusal(folder, base) == reason


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "LOHA"},
        {"r": 0},
        {"r": True},
        {"r": "8"},
        {"lora_alpha": 0},
        {"lora_alpha": math.nan},
        {"lora_alpha": math.inf},
        {"lora_alpha": True},
        {"bias": "all"},
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}},
        {"modules_to_save": ["lm_head"]},
        {"fan_in_fan_out": True},
        {"invented_next_year": 1},
        {"target_modules": "all-linear"},
        {"target_modules": []},
        {"target_modules": ["lm_head"]},
        {"target_modules": [["q_proj"]]},
        {"layers_to_transform": []},
        {"layers_to_transform": [7]},
        {"layers_to_transform": [-1]},
        {"layers_to_transform": ["1"]},
    ],
)
def test_configurations_that_mean_something_else_are_refused(
    write_adapter: Write, folder: Path, base: BaseShape, config: dict[str, Any]
) -> None:
    assert refusal(write_adapter(folder, **config), base) == "config"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 60_000, b" " * 70_000, b"\xff\xfe"])
def test_configurations_that_cannot_be_read_are_refused(
    write_adapter: Write, folder: Path, base: BaseShape, content: bytes
) -> None:
    write_adapter(folder)
    (folder / CONFIG).write_bytes(content)
    assert refusal(folder, base) == "config"


def test_the_base_s_shape_and_norms(base: BaseShape, tiny_model: Path) -> None:
    weights = load_file(tiny_model / "model.safetensors")
    assert base.digest == model_digest(tiny_model)
    assert len(base.matrices) == 2 * 7
    for module, matrix in base.matrices.items():
        weight = weights[f"{module}.weight"]
        assert (matrix.out_features, matrix.in_features) == weight.shape
        assert matrix.norm == pytest.approx(np.linalg.norm(weight.astype(np.float64)))


def test_norms_are_remembered_until_the_base_changes(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    name = "model.layers.0.mlp.up_proj.weight"
    for size in (1.0, 2.0):
        save_file({name: np.full((3, 4), size, np.float32)}, model / "model.safetensors")
        for _ in range(2):
            assert BaseShape.read(model).matrices["model.layers.0.mlp.up_proj"].norm == pytest.approx(size * 12**0.5)
    kept = tmp_path / "model.norms.json"
    kept.write_text(kept.read_text().replace(": [3, 4,", ": [30, 40,"))
    assert BaseShape.read(model).matrices["model.layers.0.mlp.up_proj"].out_features == 30, "it was read again"
    kept.write_text("{")
    assert BaseShape.read(model).matrices["model.layers.0.mlp.up_proj"].out_features == 3


def test_bfloat16_bases_are_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    weight = torch.randn(3, 5).to(torch.bfloat16)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    save_torch({"model.layers.0.self_attn.q_proj.weight": weight}, tmp_path / "m" / "model.safetensors")
    matrix = BaseShape.read(tmp_path / "m").matrices["model.layers.0.self_attn.q_proj"]
    assert matrix.norm == pytest.approx(weight.double().norm().item())


def test_a_header_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.zeros((4,), np.float32)}, tmp_path / "x", metadata={"k": "v"})
    header = read_header(tmp_path / "x", 1 << 20)
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.items()} == {
        "a": ("F32", (4,)),
        "b": ("F16", (2, 3)),
    }
