"""One matrix per expert times that expert's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.groups import (
    accumulate_dtype,
    grouped_matmul,
    grouped_outer,
    grouped_sum,
    per_row,
)
from moe_kernels.backends.reference.unpermute import unpermute_backward_reference, unpermute_reference


def _as_EOH(w: Tensor, transposed: bool) -> Tensor:
    return w.transpose(1, 2) if transposed else w


def grouped_mm_reference(
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
) -> Tensor:
    """Return (N, O), or (T, O) with `slot_row` (see `moe_kernels.grouped_mm`)."""
    wide = accumulate_dtype(x)
    rows = x if row_token is None else x[row_token]
    out = grouped_matmul(rows, _as_EOH(w, transposed), offsets, bias).to(wide)
    if row_scale is not None:
        owned = torch.arange(rows.shape[0], device=x.device) < offsets[-1]
        out = out * torch.where(owned, row_scale.to(wide), 0)[:, None]
    if slot_row is not None:
        out = unpermute_reference(out, slot_row, None)
    if base is not None:
        out = out + base.to(wide)
    return out.to(x.dtype)


def grouped_mm_backward_reference(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    need_x: bool,
    need_w: bool,
    need_bias: bool,
    need_row_scale: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, w, bias and row_scale; empty where not needed."""
    wide = accumulate_dtype(x)
    rows = x if row_token is None else x[row_token]
    N = rows.shape[0]
    owned_N = torch.arange(N, device=x.device) < offsets[-1]

    grad_N = grad.to(wide)
    if slot_row is not None:
        like = torch.empty(N, grad.shape[1], dtype=wide, device=x.device)
        grad_N, _ = unpermute_backward_reference(grad_N, like, slot_row, None)
    grad_N = torch.where(owned_N[:, None], grad_N, 0)
    scaled_N = grad_N if row_scale is None else grad_N * torch.where(owned_N, row_scale.to(wide), 0)[:, None]

    grad_x, grad_w, grad_bias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    grad_row_scale = torch.empty(0, dtype=wide, device=x.device)
    w_EHO = _as_EOH(w, transposed).transpose(1, 2)
    if need_x:
        grad_x = grouped_matmul(scaled_N.to(x.dtype), w_EHO, offsets)
        if row_token is not None:
            grad_x = _sum_by_token(grad_x, row_token, owned_N, x.shape[0])
    if need_w:
        grad_w = grouped_outer(scaled_N.to(x.dtype), rows, offsets)
        grad_w = grad_w.transpose(1, 2).contiguous() if transposed else grad_w
    if need_bias:
        grad_bias = grouped_sum(scaled_N, offsets).to(x.dtype)
    if need_row_scale:
        # ∂/∂scale of scale·(xWᵀ + b), as x·(gW) + g·b: no second forward product is stored.
        back_N = grouped_matmul(grad_N.to(x.dtype), w_EHO, offsets).to(wide)
        grad_row_scale = (back_N * rows.to(wide)).sum(1)
        if bias is not None:
            grad_row_scale = grad_row_scale + (grad_N * per_row(bias.to(wide), offsets, N)).sum(1)
        grad_row_scale = torch.where(owned_N, grad_row_scale, 0)
    return grad_x, grad_w, grad_bias, grad_row_scale


def _sum_by_token(rows: Tensor, row_token: Tensor, owned: Tensor, T: int) -> Tensor:
    """Sum the rows of each token in float32."""
    wide = rows.to(accumulate_dtype(rows))
    wide = torch.where(owned[:, None], wide, 0)
    target = row_token.to(torch.int64)[:, None].expand_as(wide)
    out = torch.zeros(T, rows.shape[1], dtype=wide.dtype, device=rows.device)
    return out.scatter_add_(0, target, wide).to(rows.dtype)
