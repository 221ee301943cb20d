"""One quantized matrix per expert times that expert's rows: the unquantized product with what it stands for."""

from __future__ import annotations

from torch import Tensor

from moe_kernels.backends.reference.dequantize import dequantized, rounded_rows
from moe_kernels.backends.reference.grouped_mm import grouped_mm_backward_reference, grouped_mm_reference
from moe_kernels.backends.reference.groups import accumulate_dtype


def grouped_mm_quantized_reference(
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
) -> Tensor:
    """Return (N, O), or (T, O) with `slot_row` (see `moe_kernels.grouped_mm`)."""
    if not dynamic:
        w_EOH = dequantized(format, w, scales, x.dtype)
        return grouped_mm_reference(x, w_EOH, offsets, False, row_token, bias, row_scale, slot_row, base)
    # Products of integers are exact where they are summed, so nothing is rounded to x's dtype on the way into one.
    wide = accumulate_dtype(x)
    w_EOH = dequantized(format, w, scales, wide)
    bias, base = None if bias is None else bias.to(wide), None if base is None else base.to(wide)
    rows = rounded_rows(x.to(wide))
    return grouped_mm_reference(rows, w_EOH, offsets, False, row_token, bias, row_scale, slot_row, base).to(x.dtype)


def grouped_mm_quantized_backward_reference(
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
    w_EOH = dequantized(format, w, scales, x.dtype)
    grad_x, _, grad_bias, grad_row_scale = grouped_mm_backward_reference(
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
