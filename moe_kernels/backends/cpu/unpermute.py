"""Sum each token's rows, weighted, in slot order."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import result, result_float, rows, rows_or_none
from moe_kernels.native import core, view, view_or_none


def unpermute_cpu(rows_NH: Tensor, slot_row: Tensor, weights: Tensor | None) -> Tensor:
    """Return (T, H) in the rows' dtype: Σ_k weights[t, k] · rows[slot_row[t, k]], in float32, in the order of k."""
    rows_NH, slot_row, weights = rows(rows_NH), rows(slot_row), rows_or_none(weights)
    out = result(rows_NH, (slot_row.shape[0], rows_NH.shape[1]))
    core().unpermute(view(rows_NH), view(slot_row), view_or_none(weights), view(out), torch.get_num_threads())
    return out


def unpermute_backward_cpu(
    grad: Tensor, rows_NH: Tensor, slot_row: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows (N, H) and of weights (T, K), the latter empty where there were none."""
    grad, rows_NH, slot_row, weights = rows(grad), rows(rows_NH), rows(slot_row), rows_or_none(weights)
    grad_rows = result(rows_NH, rows_NH.shape)
    grad_weights = result_float(rows_NH, slot_row.shape, weights is not None)
    core().unpermute_backward(
        view(grad),
        view(rows_NH),
        view(slot_row),
        view_or_none(weights),
        view(grad_rows),
        None if weights is None else view(grad_weights),
        torch.get_num_threads(),
    )
    return grad_rows, grad_weights
