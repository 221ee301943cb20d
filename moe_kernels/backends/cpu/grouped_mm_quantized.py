"""Each row times its expert's quantized matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import result, result_float, rows, rows_or_none
from moe_kernels.backends.cpu.quantized import NativeWeight
from moe_kernels.native import core, view, view_or_none


def grouped_mm_quantized_cpu(
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
    x, offsets, native = rows(x), rows(offsets), NativeWeight(format, w, scales)
    row_token, bias, row_scale = rows_or_none(row_token), rows_or_none(bias), rows_or_none(row_scale)
    slot_row, base = rows_or_none(slot_row), rows_or_none(base)
    N = x.shape[0] if row_token is None else row_token.shape[0]
    out = result(x, (N if slot_row is None else slot_row.shape[0], w.shape[1]))
    core().grouped_mm_quantized(
        view(x),
        native.handle,
        view(offsets),
        view_or_none(row_token),
        view_or_none(bias),
        view_or_none(row_scale),
        view_or_none(slot_row),
        view_or_none(base),
        dynamic,
        view(out),
        torch.get_num_threads(),
    )
    return out


def grouped_mm_quantized_backward_cpu(
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
    """Return the gradients of x, bias and row_scale; empty where not needed."""
    grad, x, offsets, native = rows(grad), rows(x), rows(offsets), NativeWeight(format, w, scales)
    row_token, bias, row_scale = rows_or_none(row_token), rows_or_none(bias), rows_or_none(row_scale)
    slot_row = rows_or_none(slot_row)
    N = x.shape[0] if row_token is None else row_token.shape[0]
    grad_x = result(x, x.shape, need_x)
    grad_bias = result(x, (w.shape[0], w.shape[1]), need_bias)
    grad_row_scale = result_float(x, (N,), need_row_scale)
    core().grouped_mm_quantized_backward(
        view(grad),
        view(x),
        native.handle,
        view(offsets),
        view_or_none(row_token),
        view_or_none(bias),
        view_or_none(row_scale),
        view_or_none(slot_row),
        view(grad_x) if need_x else None,
        view(grad_bias) if need_bias else None,
        view(grad_row_scale) if need_row_scale else None,
        torch.get_num_threads(),
    )
    return grad_x, grad_bias, grad_row_scale
