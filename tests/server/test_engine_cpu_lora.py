"""The mend against an exact reference, and the stock code against the same: once that one passes, the mend can go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thumbwheel.errors import SetupError

WIDTHS = (24, 8, 8)
RANK, IN, SLOTS = 4, 16, 3
MIXED = [2, 2, 0, 0, 0, 1, 5, 5, 0, 2, 2, 2]
"""Adapter ids of a batch's tokens; 0 has none."""


def wrapper(kind: type[Any], ids: list[int], prefill: bool) -> Any:
    """A wrapper that has been told about a batch. Adapters 1, 2 and 5 sit in the slots in that order."""
    from vllm.lora.layers import LoRAMapping

    made = kind(max_num_batched_tokens=64, max_batches=64, device="cpu")
    mapping = LoRAMapping(index_mapping=tuple(ids), prompt_mapping=tuple(ids), is_prefill=prefill)
    made.update_metadata(mapping, [1, 2, 5], SLOTS, 100)
    return made


def layer(seed: int) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    dice = torch.Generator().manual_seed(seed)
    a = tuple(torch.randn(SLOTS, 1, RANK, IN, generator=dice) for _ in WIDTHS)
    b = tuple(torch.randn(SLOTS, 1, width, RANK, generator=dice) for width in WIDTHS)
    return a, b


def reference(y: torch.Tensor, x: torch.Tensor, a: Any, b: Any, scale: float, ids: list[int]) -> torch.Tensor:
    """Token by token, from the definition."""
    y = y.clone()
    for row, adapter in enumerate(ids):
        if adapter:
            slot = [1, 2, 5].index(adapter)
            parts = [scale * (b[i][slot, 0] @ (a[i][slot, 0] @ x[row])) for i in range(len(WIDTHS))]
            y[row] += torch.cat(parts)
    return y


def computed(kind: type[Any], ids: list[int], prefill: bool, scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    """What the wrapper makes of a random batch, and what it should."""
    dice = torch.Generator().manual_seed(7)
    x, y = torch.randn(len(ids), IN, generator=dice), torch.randn(len(ids), sum(WIDTHS), generator=dice)
    a, b = layer(3)
    expected = reference(y, x, a, b, scale, ids)
    wrapper(kind, ids, prefill).add_lora_linear(y, x, a, b, scale, WIDTHS)
    return y, expected


@pytest.mark.parametrize("prefill", [True, False])
@pytest.mark.parametrize("ids", [MIXED, [0] * 6, [5] * 6, [1], [0]])
def test_mended_code_is_exact(ids: list[int], prefill: bool) -> None:
    from server.engine_cpu_lora import SegmentedPunicaWrapper

    y, expected = computed(SegmentedPunicaWrapper, ids, prefill)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("prefill", [True, False])
def test_stock_code_gives_tokens_without_an_adapter_the_last_one(prefill: bool) -> None:
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    y, expected = computed(PunicaWrapperCPU, MIXED, prefill)
    adapted = torch.tensor(MIXED) > 0
    torch.testing.assert_close(y[adapted], expected[adapted])
    assert (y[~adapted] - expected[~adapted]).abs().max() > 0.1


def test_a_batch_follows_the_one_before() -> None:
    from server.engine_cpu_lora import SegmentedPunicaWrapper

    made = wrapper(SegmentedPunicaWrapper, MIXED, prefill=True)
    from vllm.lora.layers import LoRAMapping

    ids = [0, 5]
    made.update_metadata(LoRAMapping(tuple(ids), tuple(ids), is_prefill=False), [1, 2, 5], SLOTS, 100)
    x, y = torch.ones(2, IN), torch.zeros(2, sum(WIDTHS))
    a, b = layer(3)
    expected = reference(y, x, a, b, 1.0, ids)
    made.add_lora_linear(y, x, a, b, 1.0, WIDTHS)
    torch.testing.assert_close(y, expected)


def test_segments() -> None:
    from server.engine_cpu_lora import segments

    assert segments([]) == []
    assert segments([-1, -1]) == []
    assert segments([0, 0, -1, 2, 2, 1]) == [(0, 2, 0), (3, 5, 2), (5, 6, 1)]


def test_another_version_is_refused() -> None:
    from server.engine_cpu_lora import require_known_version

    require_known_version("0.32.0")
    require_known_version("0.32.0+cpu")
    for version in ("0.32.1", "0.33.0", "0.3"):
        with pytest.raises(SetupError, match="mended for vLLM"):
            require_known_version(version)
