"""Quantised weights on a CPU: only where they are computed as they are meant.

Without AVX-512 vLLM 0.32 has no kernel for 4 bits, and dies at the first answer. With 8 bits it answers: on x86
without VNNI oneDNN adds pairs of products in 16 bits, which overflow, without a word. A product of two random matrices
comes out wrong by 2 %, and the tokens of a small random model by half a nat each, where rounding to 8 bits would cost
a twentieth.
"""

from __future__ import annotations

import platform
from pathlib import Path

from thumbwheel.errors import SetupError

CPU_INFO = Path("/proc/cpuinfo")


def require_kernels(quantization: str | None) -> None:
    """
    Args:
        quantization: vLLM's name of the method; None for weights in full precision.

    Raises:
        SetupError: this CPU would compute something else than the model.
    """
    if quantization and platform.machine() == "x86_64" and "avx512_vnni" not in CPU_INFO.read_text(encoding="utf-8"):
        raise SetupError(
            f"the model's weights are quantised ({quantization}), and this CPU cannot compute with them rightly\n"
            "  that takes AVX-512 with VNNI, or a GPU; here, set model.path to the model in full precision"
        )
