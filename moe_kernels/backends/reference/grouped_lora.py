"""The low-rank delta of each row's group."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.groups import (
    accumulate_dtype,
    grouped_matmul,
    grouped_outer,
    grouped_sum,
    per_row,
    without_autocast,
)
from moe_kernels.backends.reference.route import route_reference


def _without_padding(A: Tensor, B: Tensor, ranks: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A and B in `dtype`, zero from ranks[g] on."""
    A_GRH, B_GOR = A.to(dtype), B.to(dtype)
    if ranks is None:
        return A_GRH, B_GOR
    kept_GR = torch.arange(A.shape[1], device=A.device) < ranks[:, None]
    return torch.where(kept_GR[:, :, None], A_GRH, 0), torch.where(kept_GR[:, None, :], B_GOR, 0)


def _to_rows(value_N: Tensor, slot_row: Tensor) -> Tensor:
    """Give row i the sorted row slot_row[i], zero where there is none."""
    slots_N = slot_row.reshape(-1)
    owned_N1 = (slots_N >= 0)[:, None]
    return torch.where(owned_N1, value_N[slots_N.clamp(min=0).to(torch.int64)], 0)


def grouped_lora_reference(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    base: Tensor | None,
) -> Tensor:
    """Return the delta (N, O), or `base` with the delta added in place (see `moe_kernels.grouped_lora`)."""
    wide = accumulate_dtype(x)
    offsets, row_token, slot_row = route_reference(groups[:, None], A.shape[0])
    A_GRH, B_GOR = _without_padding(A, B, ranks, wide)
    with without_autocast(x):
        h_NR = grouped_matmul(x[row_token].to(wide), A_GRH, offsets)
        h_NR = h_NR * per_row(scaling[:, None], offsets, x.shape[0])
        delta_NO = _to_rows(grouped_matmul(h_NR, B_GOR, offsets), slot_row)
    if base is None:
        return delta_NO.to(x.dtype)
    return base.copy_(base.to(wide) + delta_NO)


def grouped_lora_backward_reference(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    need: list[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of x, A, B and scaling; empty where not needed."""
    wide, N = accumulate_dtype(x), x.shape[0]
    offsets, row_token, slot_row = route_reference(groups[:, None], A.shape[0])
    A_GRH, B_GOR = _without_padding(A, B, ranks, wide)
    x_NH, grad_NO = x[row_token].to(wide), grad[row_token].to(wide)
    scale_N1 = per_row(scaling[:, None], offsets, N)
    need_x, need_A, need_B, need_scaling = need
    grad_x, grad_A, grad_B, grad_scaling = (t.new_empty(0) for t in (x, A, B, scaling))
    with without_autocast(x):
        h_NR = grouped_matmul(x_NH, A_GRH, offsets)
        dh_NR = grouped_matmul(grad_NO, B_GOR.transpose(1, 2), offsets)
        if need_x:
            grad_x = _to_rows(grouped_matmul(dh_NR * scale_N1, A_GRH.transpose(1, 2), offsets), slot_row).to(x.dtype)
        if need_A:
            grad_A = grouped_outer(dh_NR * scale_N1, x_NH, offsets).to(A.dtype)
        if need_B:
            grad_B = grouped_outer(grad_NO, h_NR * scale_N1, offsets).to(B.dtype)
        if need_scaling:
            grad_scaling = grouped_sum((h_NR * dh_NR).sum(1, keepdim=True), offsets)[:, 0]
    return grad_x, grad_A, grad_B, grad_scaling
