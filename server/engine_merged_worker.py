"""The live version's full weights, in the process that computes: merged beforehand, exchanged between two steps.

    stage(8, folder, piece)     one decoder layer a call, so that running answers get their steps in between:
            │                   W + scale·B·A of every matrix that the adapter changes, packed as vLLM packs its own
            ▼
    switch_to(8)                all layers at once; tells how many tokens each request under way had by then

vLLM calls these by name (``collective_rpc``) between two steps of its engine, so no token is sampled by halves of two
versions. A CPU computes with packed copies, so the copies change places. Elsewhere captured graphs hold the addresses
of weights, so what waits in the host's memory is copied into place (unmeasured: it has not run on a GPU yet).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.platforms import current_platform

from server.adapters import CONFIG, PREFIX, WEIGHTS, read_config

BASE = 0
"""Id of the weights that the model came with."""

PARTS: Mapping[str, Mapping[str, tuple[str | int, ...]]] = {
    "qkv_proj": {"q_proj": ("q",), "k_proj": ("k",), "v_proj": ("v",)},
    "gate_up_proj": {"gate_proj": (0,), "up_proj": (1,)},
    "o_proj": {"o_proj": ()},
    "down_proj": {"down_proj": ()},
}
"""By vLLM's layer: the checkpoint's matrices that it joins, and what its loader calls each."""


class MergedWeights:
    """Mixed into vLLM's worker (``worker_extension_cls``), so it cannot have an ``__init__``."""

    model_runner: Any
    vllm_config: Any

    def merged_pieces(self) -> int:
        """Calls of `merged_stage` that a version takes."""
        return len(self._exchange().pieces)

    def merged_stage(self, version: int, folder: str, piece: int) -> None:
        """See `Exchange.stage`."""
        self._exchange().stage(version, Path(folder), piece)

    def merged_switch(self, version: int) -> dict[str, int]:
        """See `Exchange.switch`. Returns tokens sampled until then, by vLLM's own ids of the requests that had any."""
        self._exchange().switch(version)
        return {name: len(request.output_token_ids) for name, request in self.model_runner.requests.items()}

    def merged_drop(self, version: int) -> None:
        """See `Exchange.drop`."""
        self._exchange().drop(version)

    def _exchange(self) -> Exchange:
        if not hasattr(self, "_merged_exchange"):
            self._merged_exchange = Exchange(self.model_runner.get_model(), Path(self.vllm_config.model_config.model))
        return self._merged_exchange


class Exchange:
    """Versions' weights beside those that answer.

    Args:
        model: vLLM's, loaded.
        checkpoint: the folder that it was loaded from.
    """

    def __init__(self, model: torch.nn.Module, checkpoint: Path) -> None:
        self._checkpoint = Checkpoint(checkpoint)
        by_block: dict[str, dict[str, LinearBase]] = {}
        for name, layer in model.named_modules():
            parent, _, kind = name.rpartition(".")
            if kind in PARTS and isinstance(layer, LinearBase):
                by_block.setdefault(parent.rpartition(".")[0], {})[name] = layer
        self.pieces = list(by_block.values())
        self._layers = {name: layer for piece in self.pieces for name, layer in piece.items()}
        self._staged: dict[int, dict[str, Any]] = {BASE: {name: _kept(layer) for name, layer in self._layers.items()}}

    def stage(self, version: int, folder: Path, piece: int) -> None:
        """Merges one decoder layer of an adapter, whose files have been verified, with the base's weights.

        Raises:
            KeyError: the checkpoint lacks a matrix. What answers has not changed.
        """
        ready = self._staged.setdefault(version, {})
        lora = read_config(folder / CONFIG, max_rank=1 << 20)
        with safe_open(folder / WEIGHTS, "pt") as adapter:
            known = frozenset(adapter.keys())
            for name, layer in self.pieces[piece].items():
                weight = ModelWeightParameter(
                    data=torch.empty(
                        sum(layer.output_partition_sizes), layer.input_size_per_partition, dtype=layer.params_dtype
                    ),
                    input_dim=1,
                    output_dim=0,
                    weight_loader=layer.weight_loader_v2,
                )
                parent, _, kind = name.rpartition(".")
                for part, shard in PARTS[kind].items():
                    matrix = self._checkpoint.matrix(f"{parent}.{part}.weight")
                    a, b = (f"{PREFIX}{parent}.{part}.lora_{half}.weight" for half in "AB")
                    if a in known:
                        matrix.addmm_(adapter.get_tensor(b).float(), adapter.get_tensor(a).float(), alpha=lora.scale)
                    # vLLM's own loader takes this worker's share of it, and puts it where its layer wants it.
                    layer.weight_loader_v2(weight, matrix.to(weight.dtype), *shard)
                ready[name] = _packed(layer, weight)

    def switch(self, version: int) -> None:
        """Puts a staged version's weights, or the base's, where the next step finds them."""
        ready = self._staged[version]
        assert ready.keys() == self._layers.keys(), "a version that is not staged whole"
        for name, layer in self._layers.items():
            _put(layer, ready[name])
        if not current_platform.is_cpu():
            torch.accelerator.synchronize()

    def drop(self, version: int) -> None:
        """Frees what was staged of a version that does not answer."""
        self._staged.pop(version, None)


class Checkpoint:
    """A checkpoint's matrices, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self._files = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))

    def matrix(self, name: str) -> torch.Tensor:
        """(out, in), float32, the caller's own."""
        with safe_open(self._files[name], "pt") as file:
            matrix: torch.Tensor = file.get_tensor(name)
            return matrix.to(torch.float32, copy=True)


def _kept(layer: LinearBase) -> Any:
    """What a layer computes with now."""
    return layer.cpu_linear if current_platform.is_cpu() else layer.weight.data.cpu().pin_memory()


def _packed(layer: LinearBase, weight: torch.nn.Parameter) -> Any:
    """A weight in the form in which `_put` takes it."""
    if not current_platform.is_cpu():
        return weight.data.pin_memory()
    stand_in = torch.nn.Module()
    stand_in.weight, stand_in.bias = weight, layer.bias
    layer.quant_method.process_weights_after_loading(stand_in)
    return stand_in.cpu_linear


def _put(layer: LinearBase, ready: Any) -> None:
    if current_platform.is_cpu():
        layer.cpu_linear = ready
    else:
        layer.weight.data.copy_(ready, non_blocking=True)
