"""What an adapter must be before the engine sees it.

vLLM accepts non-finite weights, which spoil other requests until it is started anew; keys under a wrong prefix, which
it leaves out without a word; and a rank that is not its tensors'. So nothing is left to it: files, header, keys, shapes
and values are held to what the base model and ``adapter_config.json`` imply, and every difference is a refusal.

numpy is enough for that; torch stays out of this process' own work.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thumbwheel.artifacts import MANIFEST, model_digest
from thumbwheel.config import Server
from thumbwheel.errors import AdapterRefused

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TRAINING = "training"

MODULES = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
"""Layers that an adapter may change: those that the engine makes room for."""

PREFIX = "base_model.model."
MAX_HEADER = 1 << 20
MAX_CONFIG = 1 << 16

INERT = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
"""Keys of PEFT's adapter_config.json that do not change what the weights mean."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix of the base: (out, in) and its Frobenius norm."""

    out_features: int
    in_features: int
    norm: float


@dataclass(frozen=True, slots=True)
class BaseShape:
    """What adapters are held to: the base model's digest, and the matrices that LoRA may change, by module name."""

    digest: str
    matrices: Mapping[str, Matrix]

    @classmethod
    def read(cls, folder: Path) -> BaseShape:
        """Reads a checkpoint; its norms are remembered beside it, so that gigabytes are read only once.

        Raises:
            NotFound: `folder` holds no checkpoint in safetensors.
        """
        digest = model_digest(folder)
        memory = folder.absolute().with_name(f"{folder.absolute().name}.norms.json")
        # Whatever is wrong with what was remembered, it can be made anew.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(memory.read_text(encoding="utf-8"))
            if kept["sha256"] == digest:
                return cls(digest, {name: Matrix(*facts) for name, facts in kept["matrices"].items()})
        matrices = {}
        for file in sorted(folder.glob("*.safetensors")):
            header = read_header(file, max_header=100 << 20)
            for name, tensor in header.items():
                module = name.removesuffix(".weight")
                if _adaptable(module) is not None and len(tensor.shape) == 2 and tensor.dtype in FLOATS:
                    values = _values(file, tensor)
                    matrices[module] = Matrix(*tensor.shape, norm=float(np.linalg.norm(values)))
        facts = {name: [m.out_features, m.in_features, m.norm] for name, m in matrices.items()}
        with contextlib.suppress(OSError):  # a folder that is not ours to write in: read again next time
            # Renamed into place, so that no reader sees half of it.
            draft = memory.with_name(f"{memory.name}.{os.getpid()}")
            draft.write_text(json.dumps({"sha256": digest, "matrices": facts}), encoding="utf-8")
            draft.replace(memory)
        return cls(digest, matrices)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A header's entry: dtype, shape, and where in the file its bytes lie."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Lora:
    """What adapter_config.json declares."""

    rank: int
    scale: float
    modules: frozenset[str]
    layers: frozenset[int] | None


def verify(folder: Path, facts: Mapping[str, Any], base: BaseShape, limits: Server) -> None:
    """Refuses an adapter unless it is exactly what `base` and its own configuration imply.

    Args:
        folder: a version's folder, whose digests have been checked (``thumbwheel.artifacts.verify_version``).
        facts: what the publisher declared in the manifest; `base_digest` must be this base's.

    Raises:
        AdapterRefused: with one of the reasons unexpected_file, missing_file, symlink, base_digest, config, rank,
            header, truncated, keys, shape, dtype, not_finite, norm.
    """
    _check_files(folder)
    if facts.get("base_digest") != base.digest:
        raise AdapterRefused("base_digest", "it was trained on another base model than the one served here")
    lora = read_config(folder / CONFIG, limits.max_lora_rank)
    header = read_header(folder / WEIGHTS, MAX_HEADER)
    pairs = _expected_pairs(lora, base)
    _check_keys(header, {key for pair in pairs.values() for key in pair})
    for module, (key_a, key_b) in pairs.items():
        matrix, a, b = base.matrices[module], header[key_a], header[key_b]
        _check_tensor(key_a, a, (lora.rank, matrix.in_features))
        _check_tensor(key_b, b, (matrix.out_features, lora.rank))
        values = _values(folder / WEIGHTS, a), _values(folder / WEIGHTS, b)
        _check_update(module, lora.scale, *values, matrix, limits.max_update_norm)


def _check_files(folder: Path) -> None:
    for entry in sorted(folder.iterdir()):
        if entry.is_symlink():
            raise AdapterRefused("symlink", f"{entry.name} is a link")
        known = entry.is_dir() if entry.name == TRAINING else entry.name in (WEIGHTS, CONFIG, MANIFEST)
        if not known:
            # Above all pickles: adapter_model.bin runs code when it is read.
            raise AdapterRefused("unexpected_file", f"{entry.name} has no place in an adapter")
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise AdapterRefused("missing_file", f"there is no {name}")


def read_config(path: Path, max_rank: int) -> Lora:
    """Reads adapter_config.json.

    Raises:
        AdapterRefused: config or rank.
    """
    if path.stat().st_size > MAX_CONFIG:
        raise AdapterRefused("config", f"{path.name} has more than {MAX_CONFIG} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise AdapterRefused("config", f"{path.name} is not JSON") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterRefused("config", "only LoRA adapters in PEFT's format are served")
    rank: Any = config.get("r")
    alpha: Any = config.get("lora_alpha")
    modules: Any = config.get("target_modules")
    if type(rank) is not int or rank < 1:
        raise AdapterRefused("config", f"r = {rank!r} is not a rank")
    if rank > max_rank:
        raise AdapterRefused("rank", f"rank {rank}; at most {max_rank} are served (server.max_lora_rank)")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise AdapterRefused("config", f"lora_alpha = {alpha!r} is not a scale")
    if not isinstance(modules, list) or not modules or not set(map(str, modules)) <= MODULES:
        raise AdapterRefused("config", f"target_modules must be some of {', '.join(sorted(MODULES))}")
    if config.get("bias", "none") != "none":
        raise AdapterRefused("config", "biases are not served")
    read = {"peft_type", "r", "lora_alpha", "target_modules", "layers_to_transform", "bias"}
    # A feature this server has never heard of may change what the weights mean, so it must be off.
    if strange := sorted(key for key, value in config.items() if value and key not in read | INERT):
        raise AdapterRefused("config", f"{', '.join(strange)} is set and not served")
    return Lora(rank, alpha / rank, frozenset(modules), _layers(config.get("layers_to_transform")))


def _layers(declared: object) -> frozenset[int] | None:
    """None means all layers."""
    if declared is None:
        return None
    layers = declared if isinstance(declared, list) else [declared]
    if not layers or any(type(layer) is not int or layer < 0 for layer in layers):
        raise AdapterRefused("config", f"layers_to_transform = {declared!r} names no layers")
    return frozenset(layers)


def _adaptable(module: str) -> tuple[int, str] | None:
    """Layer and kind of a module that LoRA may change."""
    match = re.fullmatch(r"(?:.+\.)?layers\.(\d+)\.(?:.+\.)?(\w+)", module)
    return (int(match[1]), match[2]) if match and match[2] in MODULES else None


def _expected_pairs(lora: Lora, base: BaseShape) -> dict[str, tuple[str, str]]:
    """Keys of A and B for every module that the adapter declares."""
    pairs = {}
    layers = set()
    for module in base.matrices:
        layer, kind = _adaptable(module) or (-1, "")
        layers.add(layer)
        if kind in lora.modules and (lora.layers is None or layer in lora.layers):
            pairs[module] = (f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight")
    if lora.layers is not None and (beyond := sorted(lora.layers - layers)):
        raise AdapterRefused("config", f"layers_to_transform names layer {beyond[0]}, which the base does not have")
    if not pairs:
        raise AdapterRefused("config", "it changes no layer of the base")
    return pairs


def _check_keys(header: Mapping[str, Tensor], expected: set[str]) -> None:
    if missing := sorted(expected - header.keys()):
        raise AdapterRefused("keys", f"{len(missing)} tensors are missing, such as {missing[0]}")
    if extra := sorted(header.keys() - expected):
        raise AdapterRefused("keys", f"{len(extra)} tensors are not this base's, such as {extra[0][:200]}")


def _check_tensor(key: str, tensor: Tensor, shape: tuple[int, int]) -> None:
    if tensor.dtype not in FLOATS:
        raise AdapterRefused("dtype", f"{key} is {tensor.dtype}; {', '.join(FLOATS)} are served")
    if tensor.shape != shape:
        raise AdapterRefused("shape", f"{key} is {list(tensor.shape)} and must be {list(shape)}")


def _check_update(
    module: str,
    scale: float,
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    matrix: Matrix,
    max_update_norm: float,
) -> None:
    """Values finite and ‖scale·B·A‖ ≤ max_update_norm·‖W‖ (Frobenius).

    ‖BA‖² = tr(AᵀBᵀBA) = ⟨BᵀB, AAᵀ⟩: two rank × rank products instead of one out × in.
    """
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise AdapterRefused("not_finite", f"{module}: the adapter holds NaN or infinity")
    square = float(np.sum((b.T @ b) * (a @ a.T)))
    norm = scale * math.sqrt(max(square, 0.0))  # rounding may take a zero below zero
    if not norm <= max_update_norm * matrix.norm:
        raise AdapterRefused(
            "norm",
            f"{module}: the update's norm is {norm:.3g}, the matrix' own {matrix.norm:.3g}; at most "
            f"{max_update_norm:g} of it is served (server.max_update_norm)",
        )


FLOATS = ("F32", "F16", "BF16")
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1} | {
    f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)
}
"""Bytes of a value, by safetensors' names."""


def read_header(path: Path, max_header: int) -> dict[str, Tensor]:
    """Reads the header of a safetensors file (8 bytes of length, then JSON) and checks that it describes the file.

    Raises:
        AdapterRefused: header or truncated.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise AdapterRefused("truncated", f"{path.name} ends inside its header")
        if length > max_header:
            raise AdapterRefused("header", f"{path.name} has a header of {length} bytes; at most {max_header}")
        try:
            entries = json.loads(file.read(length), object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise AdapterRefused("header", f"the header of {path.name} is not JSON") from error
    if not isinstance(entries, dict):
        raise AdapterRefused("header", f"the header of {path.name} is not an object")
    entries.pop("__metadata__", None)
    tensors = {name: _entry(name, entry, 8 + length) for name, entry in entries.items()}
    position = 8 + length
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != position:
            raise AdapterRefused("header", f"the tensors of {path.name} overlap or leave gaps")
        position = tensor.end
    if position != size:
        reason = "truncated" if position > size else "header"
        raise AdapterRefused(reason, f"{path.name} has {size} bytes and its header describes {position}")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _entry(name: str, entry: object, data: int) -> Tensor:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]  # type: ignore[index]
        sound = isinstance(dtype, str) and all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterRefused("header", f"the header's entry for {name[:200]} is malformed") from error
    if not sound or len(shape) > 8 or end - start != math.prod(shape) * WIDTHS.get(dtype, -1):
        raise AdapterRefused("header", f"the header's entry for {name[:200]} is malformed")
    return Tensor(dtype, shape, data + start, data + end)


def _values(path: Path, tensor: Tensor) -> NDArray[np.float64]:
    """The tensor's values, exactly, in double precision: squares of the largest floats still fit."""
    raw = np.fromfile(path, f"<u{WIDTHS[tensor.dtype]}", math.prod(tensor.shape), offset=tensor.start)
    raw = raw.reshape(tensor.shape)
    if tensor.dtype == "BF16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view(np.float32 if tensor.dtype == "F32" else np.float16).astype(np.float64)
