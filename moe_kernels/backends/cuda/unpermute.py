"""Sum each token's rows, weighted, in slot order, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, optional_view, view, with_unit_columns


def unpermute_cuda(rows: Tensor, slot_row: Tensor, weights: Tensor | None) -> Tensor:
    """Return (T, H): Σ_k weights[t, k] · rows[slot_row[t, k]], summed in float32 in the order of k."""
    rows, slot_row = with_unit_columns(rows), slot_row.contiguous()
    weights = None if weights is None else weights.contiguous()
    out = rows.new_empty(slot_row.shape[0], rows.shape[1])
    module().unpermute(view(rows), view(slot_row), optional_view(weights), view(out), *launch_arguments(rows))
    return out


def unpermute_backward_cuda(
    grad: Tensor, rows: Tensor, slot_row: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the gradients of rows (N, H) and of weights (T, K), the latter empty where there were none."""
    grad, rows, slot_row = with_unit_columns(grad), with_unit_columns(rows), slot_row.contiguous()
    weights = None if weights is None else weights.contiguous()
    # The kernel writes only rows that a slot owns; how many those are, the host does not know.
    grad_rows = torch.zeros(rows.shape, dtype=rows.dtype, device=rows.device)
    grad_weights = None if weights is None else torch.empty_like(weights)
    module().unpermute_backward(
        view(grad),
        view(rows),
        view(slot_row),
        optional_view(weights),
        view(grad_rows),
        optional_view(grad_weights),
        *launch_arguments(rows),
    )
    return grad_rows, rows.new_empty(0, dtype=torch.float32) if grad_weights is None else grad_weights
