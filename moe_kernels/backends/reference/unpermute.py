"""Sum each token's rows, weighted, in slot order."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.groups import accumulate_dtype


def _rows_of_slot(rows: Tensor, slot_row_T: Tensor) -> Tensor:
    picked = rows[slot_row_T.clamp(min=0)].to(accumulate_dtype(rows))
    return torch.where((slot_row_T >= 0)[:, None], picked, torch.zeros_like(picked))


def unpermute_reference(rows: Tensor, slot_row: Tensor, weights: Tensor | None) -> Tensor:
    """Return (T, H) in the rows' dtype: Σ_k weights[t, k] · rows[slot_row[t, k]], in float32, in the order of k."""
    T, K = slot_row.shape
    out = torch.zeros(T, rows.shape[1], dtype=accumulate_dtype(rows), device=rows.device)
    if rows.shape[0] == 0:
        return out.to(rows.dtype)
    for k in range(K):
        picked = _rows_of_slot(rows, slot_row[:, k])
        if weights is not None:
            # A slot of no expert contributes nothing, even where its weight is NaN.
            weight_T = torch.where(slot_row[:, k] >= 0, weights[:, k].to(out.dtype), 0)
            picked = picked * weight_T[:, None]
        out = out + picked
    return out.to(rows.dtype)


def unpermute_backward_reference(
    grad: Tensor, rows: Tensor, slot_row: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows (N, H) and of weights (T, K), the latter empty where there were none."""
    T, K = slot_row.shape
    wide = accumulate_dtype(rows)
    grad_rows = torch.zeros(rows.shape[0] + 1, rows.shape[1], dtype=wide, device=rows.device)
    grad_weights = torch.zeros((T, K) if weights is not None else (0,), dtype=wide, device=rows.device)
    if rows.shape[0] == 0:
        return grad_rows[:-1].to(rows.dtype), grad_weights
    grad = grad.to(wide)
    for k in range(K):
        row_T = slot_row[:, k]
        # Slots of no expert write into the spare last row.
        target = torch.where(row_T >= 0, row_T, rows.shape[0]).to(torch.int64)
        scaled = grad
        if weights is not None:
            scaled = grad * weights[:, k, None].to(wide)
            grad_weights[:, k] = (grad * _rows_of_slot(rows, row_T)).sum(1)
        grad_rows[target] = scaled
    return grad_rows[:-1].to(rows.dtype), grad_weights
