"""The formats of quantized weights that the tests go over."""

from __future__ import annotations

import pytest

from moe_kernels.quantized_weights import quantize_int8, quantize_nf4

QUANTIZE = {
    "nf4": quantize_nf4,
    "nf4-plain": lambda w: quantize_nf4(w, double_quant=False),
    "int8": quantize_int8,
}
FORMATS = pytest.mark.parametrize("kind", QUANTIZE)


def trainable(value):
    """Return a copy that takes a gradient, where there is a value and its dtype has one."""
    return None if value is None else value.detach().clone().requires_grad_(value.is_floating_point())
