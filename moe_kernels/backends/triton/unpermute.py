"""Sum each token's rows, weighted, in slot order; and the gradients of that."""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton.rows import tile, with_unit_columns

# A program of the backward has a slot's row, so many columns at a time. Twice as many spill on sm_100.
BACKWARD_COLUMNS = 1024


@triton.jit
def _unpermute_kernel(
    rows,
    slot_row,
    weights,
    out,
    T,
    H,
    rows_stride,
    out_stride,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    t_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column_1H = (h_H < H)[None, :]
    slot_T = t_T.to(tl.int64) * K
    sum_TH = tl.zeros((BLOCK_T, BLOCK_H), tl.float32)
    for k in range(K):
        row_T = tl.load(slot_row + slot_T + k, mask=t_T < T, other=-1).to(tl.int64)
        owned_T1 = (row_T >= 0)[:, None]
        at_TH = rows + row_T[:, None] * rows_stride + h_H[None, :]
        row_TH = tl.load(at_TH, mask=owned_T1 & column_1H, other=0.0).to(tl.float32)
        if weights is not None:
            # A slot of no expert contributes nothing, even where its weight is NaN.
            weight_T = tl.load(weights + slot_T + k, mask=row_T >= 0, other=0.0).to(tl.float32)
            row_TH = row_TH * weight_T[:, None]
        sum_TH += row_TH
    at_TH = out + t_T.to(tl.int64)[:, None] * out_stride + h_H[None, :]
    tl.store(at_TH, sum_TH.to(out.dtype.element_ty), mask=(t_T < T)[:, None] & column_1H)


@triton.jit
def _unpermute_backward_kernel(
    grad,
    rows,
    slot_row,
    weights,
    owned,
    grad_rows,
    grad_weights,
    K,
    H,
    grad_stride,
    rows_stride,
    grad_rows_stride,
    BLOCK_H: tl.constexpr,
):
    slot = tl.program_id(0).to(tl.int64)
    # Divided in 32 bits: 64 are a subroutine.
    token = (tl.program_id(0) // K).to(tl.int64)
    row = tl.load(slot_row + slot).to(tl.int64)
    h_H = tl.arange(0, BLOCK_H)
    if row >= 0:
        weight = 1.0
        if weights is not None:
            weight = tl.load(weights + slot).to(tl.float32)
        dot_H = tl.zeros((BLOCK_H,), tl.float32)
        for first in range(0, H, BLOCK_H):
            column_H = first + h_H < H
            grad_H = tl.load(grad + token * grad_stride + first + h_H, mask=column_H, other=0.0).to(tl.float32)
            at_H = grad_rows + row * grad_rows_stride + first + h_H
            tl.store(at_H, (grad_H * weight).to(grad_rows.dtype.element_ty), mask=column_H)
            if weights is not None:
                row_H = tl.load(rows + row * rows_stride + first + h_H, mask=column_H, other=0.0)
                dot_H += grad_H * row_H.to(tl.float32)
        if weights is not None:
            tl.store(grad_weights + slot, tl.sum(dot_H, 0))
    elif weights is not None:
        tl.store(grad_weights + slot, 0.0)

    # There are as many rows without a slot as slots without a row.
    if slot >= tl.load(owned):
        for first in range(0, H, BLOCK_H):
            at_H = grad_rows + slot * grad_rows_stride + first + h_H
            zero_H = tl.zeros((BLOCK_H,), grad_rows.dtype.element_ty)
            tl.store(at_H, zero_H, mask=first + h_H < H)


def unpermute_triton(
    rows: Tensor, slot_row: Tensor, weights: Tensor | None, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return (T, H): Σ_k weights[t, k] · rows[slot_row[t, k]], in float32, in the order of k.

    Args:
        rows, slot_row, weights: as in `moe_kernels.unpermute`.
        dtype: of the result; None for that of the rows.
    """
    rows, slot_row = with_unit_columns(rows), slot_row.contiguous()
    weights = None if weights is None else weights.contiguous()
    (T, K), H = slot_row.shape, rows.shape[1]
    out = rows.new_empty(T, H, dtype=dtype or rows.dtype)
    if out.numel() == 0:
        return out
    block_T, block_H = tile(H)
    grid = (triton.cdiv(T, block_T), triton.cdiv(H, block_H))
    _unpermute_kernel[grid](rows, slot_row, weights, out, T, H, rows.stride(0), out.stride(0), K, block_T, block_H)
    return out


def unpermute_backward_triton(
    grad: Tensor, rows: Tensor, slot_row: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows (N, H) and of weights (T, K), the latter empty where there were none."""
    grad, rows, slot_row = with_unit_columns(grad), with_unit_columns(rows), slot_row.contiguous()
    weights = None if weights is None else weights.contiguous()
    (T, K), H = slot_row.shape, rows.shape[1]
    grad_rows = rows.new_empty(rows.shape)
    grad_weights = rows.new_empty((T, K) if weights is not None else (0,), dtype=torch.float32)
    if T * K == 0:
        return grad_rows, grad_weights
    owned = (slot_row >= 0).sum(dtype=torch.int32)
    _unpermute_backward_kernel[(T * K,)](
        grad,
        rows,
        slot_row,
        weights,
        owned,
        grad_rows,
        grad_weights,
        K,
        H,
        grad.stride(0),
        rows.stride(0),
        grad_rows.stride(0),
        min(tile(H)[1], BACKWARD_COLUMNS),
    )
    return grad_rows, grad_weights
