"""Adapters read without a trace.

``safetensors.safe_open`` keeps 64 bytes of every tensor that it hands out (0.6 to 0.8, and torch 2.13): a version's
adapter, read again whenever it is loaded, would cost an engine some kilobytes for ever. `safetensors.torch.load`, which
reads the whole file, keeps nothing; an adapter is small enough for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load
from vllm.lora import lora_model


class Tensors(dict[str, torch.Tensor]):
    """What ``safe_open`` gives, as far as it is used."""

    def get_tensor(self, name: str) -> torch.Tensor:
        return self[name]


@contextmanager
def safe_open(path: str | Path, framework: str = "pt") -> Iterator[Tensors]:
    """In place of the one in safetensors, of torch's tensors."""
    assert framework == "pt"
    yield Tensors(load(Path(path).read_bytes()))


def mend() -> None:
    """Makes this process' engine read adapters so."""
    lora_model.safetensors = SimpleNamespace(safe_open=safe_open)
