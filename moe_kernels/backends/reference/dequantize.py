"""Quantized weights where the reference's products expect tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_kernels.number_formats import decode_expert, int8_round


class DequantizedOnUse:
    """A weight (E, O, H) that dequantizes an expert when it is indexed, as a loop over the experts that are hit does.

    It has what `groups.grouped_matmul` uses of a tensor, and never holds more than one expert's values.
    """

    def __init__(self, format: str, data: Tensor, scales: list[Tensor], dtype: torch.dtype, flipped: bool = False):
        E, O, H = data.shape[0], data.shape[1], data.shape[2] * (2 if format == "nf4" else 1)
        self.shape = (E, H, O) if flipped else (E, O, H)
        self._source = (format, data, scales)
        self._dtype, self._flipped = dtype, flipped

    def __getitem__(self, e: int) -> Tensor:
        w_OH = decode_expert(*self._source, e).to(self._dtype)
        return w_OH.T if self._flipped else w_OH

    def transpose(self, first: int, second: int) -> DequantizedOnUse:
        assert (first, second) == (1, 2)
        return DequantizedOnUse(*self._source, self._dtype, not self._flipped)


def dequantized(format: str, data: Tensor, scales: list[Tensor], dtype: torch.dtype) -> Any:
    """Return a `DequantizedOnUse`, typed as what it stands for."""
    return DequantizedOnUse(format, data, scales, dtype)


def rounded_rows(x_NH: Tensor) -> Tensor:
    """Round each row to int8 with its own scale, largest magnitude / 127; the values it then has, in x's dtype.

    In float32 and float64 the product of these with an int8 weight is that of the integers, scaled.
    """
    if not x_NH.numel():
        return x_NH
    scale_N = x_NH.abs().amax(1) / 127
    return int8_round(x_NH, scale_N) * scale_N[:, None]
