"""grouped_mm with quantized weights in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton.dequantize import round_rows
from moe_kernels.backends.triton.grouped_mm import grouped_mm_backward_triton, grouped_mm_triton
from moe_kernels.backends.triton.quantized import Quantized, dequantizes_in_load, multiply_rows_quantized
from moe_kernels.backends.triton.unpermute import unpermute_triton


def grouped_mm_quantized_triton(
    x: Tensor,
    w: Tensor,
    scales: list[Tensor],
    offsets: Tensor,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
    format: str,
    dynamic: bool,
    batch_invariant: bool = False,
) -> Tensor:
    """Return (N, O), or (T, O) with `slot_row` (see `moe_kernels.grouped_mm`)."""
    weight = Quantized(format, w, scales)
    N = x.shape[0] if row_token is None else row_token.shape[0]
    if not dynamic and not dequantizes_in_load(N, weight.E, batch_invariant):
        w_EOH = weight.dequantized(offsets, x.dtype)
        return grouped_mm_triton(x, w_EOH, offsets, False, row_token, bias, row_scale, slot_row, base)
    x_rows, x_scale = round_rows(x) if dynamic else (x, None)
    scatter = slot_row is not None
    rows = multiply_rows_quantized(
        x_rows,
        weight,
        offsets,
        row_token,
        dtype=torch.float32 if scatter else x.dtype,
        x_scale=x_scale,
        bias=bias,
        row_scale=row_scale,
        base=None if scatter else base,
        zero_tail=not scatter,
        batch_invariant=batch_invariant,
    )
    if slot_row is None:
        return rows
    if base is None:
        return unpermute_triton(rows, slot_row, None, dtype=x.dtype)
    return (unpermute_triton(rows, slot_row, None) + base).to(x.dtype)


def grouped_mm_quantized_backward_triton(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    scales: list[Tensor],
    offsets: Tensor,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    format: str,
    need_x: bool,
    need_bias: bool,
    need_row_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, bias and row_scale; empty where not needed.

    They are those of the product with unrounded rows, also where the forward rounded them ("straight-through").
    """
    w_EOH = Quantized(format, w, scales).dequantized(offsets, x.dtype)
    grad_x, _, grad_bias, grad_row_scale = grouped_mm_backward_triton(
        grad,
        x,
        w_EOH,
        offsets,
        False,
        row_token,
        bias,
        row_scale,
        slot_row,
        need_x,
        False,
        need_bias,
        need_row_scale,
    )
    return grad_x, grad_bias, grad_row_scale
