"""Dequantized experts and rounded rows, bit for bit as the formats define them."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from moe_kernels.backends.reference.dequantize import rounded_rows  # noqa: E402
from moe_kernels.backends.triton import platform  # noqa: E402
from moe_kernels.quantized_weights import quantize_int8, quantize_nf4  # noqa: E402
from moe_kernels.testing import assert_close  # noqa: E402

if platform.problem() is not None or (DEVICE == "cpu" and not platform.interpreted()):
    pytest.skip(str(platform.problem() or "Triton was imported without its interpreter"), allow_module_level=True)

from moe_kernels.backends.triton.dequantize import dequantize_experts, round_rows  # noqa: E402

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
QUANTIZE = {
    "nf4": quantize_nf4,
    "nf4-plain": lambda w: quantize_nf4(w, double_quant=False),
    "int8": quantize_int8,
}


@pytest.mark.parametrize("kind", QUANTIZE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_experts_that_have_rows(kind, dtype):
    generator = torch.Generator().manual_seed(0)
    # 57 blocks of 64 an expert: neither the kernel's 64 blocks nor the 256 of a nested scale.
    w = torch.randn(5, 19, 192 if kind != "int8" else 1031, generator=generator)
    w[0, 0, :64] = 0
    quantized = QUANTIZE[kind](w).to(DEVICE)
    offsets = torch.tensor([0, 2, 2, 3, 3, 7], dtype=torch.int32, device=DEVICE)
    got = dequantize_experts(quantized.format, quantized.data, quantized.scales, offsets, dtype)
    want = quantized.dequantize(dtype)
    for e in (0, 2, 4):
        if DEVICE == "cpu" or kind != "nf4":
            assert torch.equal(got[e], want[e])
        else:
            # A GPU fuses the product and the sum in a nested scale.
            assert_close(got[e], want[e])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounded_rows(dtype):
    x = torch.randn(7, 1500, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    x[3] = 0
    x[4, :7] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5])
    x[4, 7:] = 0
    for rows in (x, x.T.contiguous().T, x[:, ::2], x[:, :1], x[:0]):
        values, scale = round_rows(rows)
        assert torch.equal(values * scale[:, None], rounded_rows(rows.float()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_stays_visible(bad):
    x = torch.ones(2, 9, device=DEVICE)
    x[1, 4] = bad
    values, scale = round_rows(x)
    assert torch.isnan(values[1] * scale[1]).all()
    assert torch.equal(values[0] * scale[0], rounded_rows(x[:1])[0])
