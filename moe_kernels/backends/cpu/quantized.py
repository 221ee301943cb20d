"""How quantized weights are described to the native core."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_kernels.backends.cpu.arguments import matrices, rows
from moe_kernels.native import core, view

# The codes of csrc/cpu/isa/kernels.h.
FORMAT_CODES = {"nf4": 1, "int8": 2}


class NativeWeight:
    """A weight's tensors, kept alive, and the native core's view of them as `handle`."""

    def __init__(self, format: str, data: Tensor, scales: list[Tensor]) -> None:
        self._tensors = tensors = [matrices(data), *(rows(value) for value in scales)]
        columns = data.shape[2] * (2 if format == "nf4" else 1)
        # absmax codes, nested_absmax, nested_code, offset: the scales are quantized themselves.
        nested = len(scales) == 4
        self.handle: Any = core().Quantized(
            FORMAT_CODES[format],
            view(tensors[0]),
            view(tensors[1]),
            view(tensors[2]) if nested else None,
            view(tensors[3]) if nested else None,
            float(tensors[4]) if nested else 0.0,
            columns,
        )
