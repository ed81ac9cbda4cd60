"""Adapters that are read again and again."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

TIMES = 200


@pytest.fixture
def adapter(write_adapter: Callable[..., Path], tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", seed=1) / "adapter_model.safetensors"


def read(open_: Callable[..., Any], path: Path) -> dict[str, torch.Tensor]:
    with open_(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def kept(open_: Callable[..., Any], path: Path) -> float:
    """Pieces of memory that a tensor, once read and dropped, leaves behind."""
    tensors = len(read(open_, path))
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(TIMES):
        read(open_, path)
    gc.collect()
    return (sys.getallocatedblocks() - before) / TIMES / tensors


def test_the_stock_reader_keeps_something_of_every_tensor(adapter: Path) -> None:
    """When this fails the mend is not needed any more."""
    assert kept(safetensors.safe_open, adapter) > 0.9


def test_ours_keeps_nothing_and_reads_the_same(adapter: Path) -> None:
    from server.engine_adapter_files import safe_open

    assert kept(safe_open, adapter) < 0.1
    stock, ours = read(safetensors.safe_open, adapter), read(safe_open, adapter)
    assert stock.keys() == ours.keys()
    assert all(torch.equal(stock[name], ours[name]) for name in stock)
