"""The losses that train the language model solve CartPole-v1."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "cartpole.py"


@pytest.fixture
def cartpole() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cartpole_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_solves_cartpole(cartpole: ModuleType, seed: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        returns = cartpole.train(seed, report=lambda line: None)
    finally:
        torch.set_num_threads(threads)
    assert np.mean(returns[-20:]) >= 475
