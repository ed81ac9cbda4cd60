"""LoRA on a backbone: put on, started afresh, taken over from a file. Tensors go by their names in a PEFT file."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import Tensor

from thumbwheel import config
from thumbwheel.errors import AdapterRefused, SetupError

TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
"""The linear layers that carry LoRA."""


def put_on(base: Any, lora: config.Lora, layers: range) -> Any:
    """
    Raises:
        SetupError: the model has no such layers.
    """
    try:
        return peft.get_peft_model(
            base,
            peft.LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,
                target_modules=list(TARGETS),
                layers_to_transform=list(layers),
                layers_pattern="layers",
                task_type=peft.TaskType.CAUSAL_LM,
            ),
        )
    except ValueError as error:
        raise SetupError(f"{type(base).__name__} has no layers named {', '.join(TARGETS)} to adapt: {error}") from error


def fresh(adapter: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """A as PEFT draws it (Kaiming uniform, a = sqrt 5), B zero: the adapted model is the base."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for name, tensor in adapter.items():
        bound = tensor.shape[1] ** -0.5 if ".lora_A." in name else 0.0
        drawn[name] = (torch.rand(tensor.shape, generator=generator) * 2 - 1) * bound
    return drawn


def check(version: str, given: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """
    Raises:
        AdapterRefused: other names or shapes than wanted, or not finite.
    """
    if given.keys() != wanted.keys():
        odd = sorted(given.keys() ^ wanted.keys())[0]
        raise AdapterRefused("keys", f"{version}: {odd} is missing or does not belong there")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise AdapterRefused(
                "shape", f"{version}: {name} is {tuple(tensor.shape)}, not {tuple(wanted[name].shape)}"
            )
        if not torch.isfinite(tensor).all():
            raise AdapterRefused("not_finite", f"{version}: {name} is not finite")


def copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """In place."""
    for name, tensor in target.items():
        tensor.copy_(source[name])


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they are saved."""
    return {name: tensors[name].detach().float().cpu().contiguous() for name in sorted(tensors)}
