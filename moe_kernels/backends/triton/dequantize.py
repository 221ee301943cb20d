"""Quantized weights and rows: the experts that have rows as 16-bit or float32 matrices, rows of x as int8.

Letters: E experts, O rows of a matrix, H values a row, N rows of x.
"""

# Kernels annotate their compile-time arguments alone, if they have any.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton.number_formats import block_scale, int8_rounded, levels_on
from moe_kernels.backends.triton.platform import interpreted
from moe_kernels.backends.triton.products import rounded

# Values that a program makes: 32 a thread.
NF4_BLOCKS = 64
INT8_COLUMNS = 1024
INT8_ROWS = 4


@triton.jit
def _dequantize_nf4_kernel(
    codes,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    offsets,
    levels,
    out,
    blocks,
    NESTED: tl.constexpr,
    BLOCKS: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Write `BLOCKS` blocks of 64 values of one expert, if it has rows."""
    e = tl.program_id(1)
    if tl.load(offsets + e) == tl.load(offsets + e + 1):
        return
    inner = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = inner < blocks
    block = e.to(tl.int64) * blocks + inner
    scale = block_scale(absmax, nested_absmax, nested_code, offset, block, mask, NESTED)[:, None]
    byte = tl.arange(0, 32)
    code = tl.load(codes + block[:, None] * 32 + byte[None, :], mask=mask[:, None], other=0).to(tl.int32)
    first = tl.load(levels + (code >> 4)) * scale
    second = tl.load(levels + (code & 15)) * scale
    value = rounded(tl.interleave(first, second), out.dtype.element_ty, INTERPRET)
    tl.store(out + block[:, None] * 64 + tl.arange(0, 64)[None, :], value, mask=mask[:, None])


@triton.jit
def _dequantize_int8_kernel(
    values, scale, offsets, out, O, H, ROWS: tl.constexpr, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr
):
    """Write `ROWS` rows of one expert's matrix, if it has rows of x; `COLUMNS` columns of them."""
    e = tl.program_id(2)
    if tl.load(offsets + e) == tl.load(offsets + e + 1):
        return
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < O)[:, None] & (column < H)[None, :]
    row_of_all = e.to(tl.int64) * O + row
    at = row_of_all[:, None] * H + column[None, :]
    factor = tl.load(scale + row_of_all, mask=row < O, other=0.0)[:, None]
    value = tl.load(values + at, mask=mask, other=0).to(tl.float32) * factor
    tl.store(out + at, rounded(value, out.dtype.element_ty, INTERPRET), mask=mask)


def dequantize_experts(format: str, data: Tensor, scales: list[Tensor], offsets: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (E, O, H) in `dtype`; the matrices of experts without rows are left as the memory was.

    Args:
        format: "nf4" or "int8".
        data, scales: see `number_formats.decode_expert`.
        offsets: (E + 1) int32 of the plan.
        dtype: float32, float16 or bfloat16.
    """
    E, O, width = data.shape
    data, scales = data.contiguous(), [s.contiguous() for s in scales]
    if format == "int8":
        out = torch.empty(data.shape, dtype=dtype, device=data.device)
        grid = (triton.cdiv(width, INT8_COLUMNS), triton.cdiv(O, INT8_ROWS), E)
        if out.numel():
            _dequantize_int8_kernel[grid](
                data,
                scales[0],
                offsets,
                out,
                O,
                width,
                ROWS=INT8_ROWS,
                COLUMNS=INT8_COLUMNS,
                INTERPRET=interpreted(),
                num_warps=4,
            )
        return out
    out = torch.empty(E, O, 2 * width, dtype=dtype, device=data.device)
    blocks = O * width // 32
    if out.numel():
        _dequantize_nf4_kernel[(triton.cdiv(blocks, NF4_BLOCKS), E)](
            data,
            *nested_or_none(scales),
            offsets,
            levels_on(data.device, torch.float32),
            out,
            blocks,
            NESTED=len(scales) > 1,
            BLOCKS=NF4_BLOCKS,
            INTERPRET=interpreted(),
            num_warps=4,
        )
    return out


def nested_or_none(scales: list[Tensor]) -> tuple[Tensor | None, ...]:
    """absmax, nested_absmax, nested_code and offset; the last three None where the scales are plain."""
    return (*scales, *(None for _ in range(4 - len(scales))))


@triton.jit
def _round_rows_kernel(x, values, scale, H, x_row, x_column, COLUMNS: tl.constexpr):
    """Round one row to int8; the second pass finds it in the cache."""
    n = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    poison = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, H, COLUMNS):
        mask = start + column < H
        value = tl.load(x + n * x_row + (start + column) * x_column, mask=mask, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
        poison += value * 0.0
    # A maximum may pass over NaN; zero times the row does not.
    factor = tl.div_rn(tl.max(largest, 0), 127.0) + tl.sum(poison, 0)
    divisor = tl.where(factor == 0, 1.0, factor)
    for start in range(0, H, COLUMNS):
        mask = start + column < H
        value = tl.load(x + n * x_row + (start + column) * x_column, mask=mask, other=0.0).to(tl.float32)
        tl.store(values + n * H + start + column, int8_rounded(tl.div_rn(value, divisor)), mask=mask)
    tl.store(scale + n, factor)


def round_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8 with its own scale: values (N, H) int8 and scale (N) float32, its magnitude over 127."""
    N, H = x.shape
    values = torch.empty(N, H, dtype=torch.int8, device=x.device)
    scale = torch.empty(N, dtype=torch.float32, device=x.device)
    if x.numel():
        columns = min(1024, triton.next_power_of_2(H))
        _round_rows_kernel[(N,)](x, values, scale, H, *x.stride(), COLUMNS=columns, num_warps=4)
    return values, scale
