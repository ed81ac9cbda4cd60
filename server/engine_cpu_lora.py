"""LoRA on a CPU, mended.

vLLM 0.32 picks an adapter for every token with ``weights[indices]``. The index of a token without an adapter is -1,
which in torch means the last slot: a base request that shares a batch with adapters is answered by one of them. The
gather also copies a whole adapter per token, which costs five sixths of the throughput.

Here consecutive tokens of one adapter are one matrix product with that adapter's slot, and tokens without an adapter
are left alone. And a base of 8-bit weights can have adapters, at whose start vLLM fails. All of it is written against
the internals of the versions named below and refuses any other.
"""

from __future__ import annotations

from typing import Any

import torch
import vllm
from vllm.lora.layers import base_linear
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from thumbwheel.errors import SetupError

WRITTEN_FOR = frozenset({"0.32.0"})


def segments(indices: list[int]) -> list[tuple[int, int, int]]:
    """Runs of equal adapter slots as (first token, end, slot); tokens without an adapter (slot < 0) are in none."""
    found: list[tuple[int, int, int]] = []
    start = 0
    for position in range(1, len(indices) + 1):
        if position == len(indices) or indices[position] != indices[start]:
            if indices[start] >= 0:
                found.append((start, position, indices[start]))
            start = position
    return found


class SegmentedPunicaWrapper(PunicaWrapperCPU):  # type: ignore[misc]
    """vLLM's wrapper with linear layers computed per segment."""

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        super().update_metadata(*args, **kwargs)
        # Once a step rather than once a layer: reading a tensor into Python costs more than a small product.
        self._segments = segments(self.token_lora_indices.tolist())

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """Adds each adapter's ``scale * x @ A.T @ B.T`` to its tokens' outputs, in place.

        Args:
            y: (tokens, sum of output_slices).
            x: (tokens, in).
            lora_a_stacked: for each output slice (slots, 1, rank, in).
            lora_b_stacked: for each output slice (slots, 1, width of the slice, rank).
        """
        y = y.view(-1, y.shape[-1])
        x = x.view(-1, x.shape[-1])
        for start, end, slot in self._segments:
            rows = x[start:end]
            offset = 0
            for a, b, width in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                shrunk = rows @ a[slot, 0].T  # (tokens of the segment, rank)
                y[start:end, offset : offset + width].addmm_(shrunk, b[slot, 0].T, alpha=scale)
                offset += width


def require_known_version(version: str = vllm.__version__) -> None:
    """
    Raises:
        SetupError: this vLLM is not one that the mend was written for.
    """
    if version.partition("+")[0] not in WRITTEN_FOR:
        known = ", ".join(sorted(WRITTEN_FOR))
        raise SetupError(
            f"LoRA, seeds and top-p on a CPU are mended for vLLM {known}, and this is {version}. Install one of these, "
            "or see whether tests/server/test_engine_cpu_*.py still tell the stock code from the mended, and add yours."
        )


def mend() -> None:
    """Makes this process' engine use the above. Call it in the process that holds the weights.

    Raises:
        SetupError: see `require_known_version`.
    """
    require_known_version()
    # vLLM asks a layer's weights where they lie, and 8-bit layers give theirs away once they are packed.
    base_linear._get_lora_device = lambda base_layer: torch.device("cpu")
    name = f"{__name__}.{SegmentedPunicaWrapper.__qualname__}"
    current_platform.get_punica_wrapper = lambda: name
