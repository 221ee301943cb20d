"""One matrix per expert times that expert's rows, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda.operands import oriented
from moe_kernels.backends.cuda.products import column_sums, outer_products, rows_times_weights, sum_by_token
from moe_kernels.backends.cuda.unpermute import unpermute_backward_cuda, unpermute_cuda


def grouped_mm_cuda(
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
    offsets, row_token, row_scale = offsets.contiguous(), _contiguous(row_token), _contiguous(row_scale)
    out = rows_times_weights(x, oriented(w, transposed), offsets, row_token, bias, row_scale)
    if slot_row is not None:
        out = unpermute_cuda(out, slot_row, None)
    return out if base is None else out + base


def grouped_mm_backward_cuda(
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
    offsets, row_token = offsets.contiguous(), _contiguous(row_token)
    N = x.shape[0] if row_token is None else row_token.shape[0]
    w_EHO = oriented(w, transposed).transpose(1, 2)
    grad_x, grad_w, grad_bias = x.new_empty(0), w.new_empty(0), x.new_empty(0)
    grad_row_scale = x.new_empty(0, dtype=torch.float32)

    grad_N = grad
    if slot_row is not None:
        grad_N, _ = unpermute_backward_cuda(grad, grad.new_empty(N, grad.shape[1]), slot_row, None)
    owned_N = torch.arange(N, device=x.device) < offsets[-1]
    scaled_N = grad_N
    if row_scale is not None:
        # Rows that no expert owns may hold anything; no kernel reads them.
        row_scale = row_scale.contiguous()
        scaled_N = (grad_N.float() * row_scale[:, None]).to(x.dtype)

    if need_x:
        grad_x = rows_times_weights(scaled_N, w_EHO, offsets, None)
        if row_token is not None:
            grad_x = sum_by_token(grad_x, row_token, offsets, x.shape[0])
    if need_w:
        grad_w = outer_products(scaled_N, None, x, row_token, offsets, transposed)
    if need_bias:
        grad_bias = column_sums(grad_N, offsets, None, row_scale)
    if need_row_scale:
        # ∂/∂scale of scale·(xWᵀ + b), as x·(gW) + g·b: no second forward product is stored.
        rows_NH = x if row_token is None else x[row_token]
        grad_row_scale = (rows_times_weights(grad_N, w_EHO, offsets, None).float() * rows_NH).sum(1)
        if bias is not None:
            experts_N = (torch.arange(N, device=x.device)[:, None] >= offsets[None, 1:]).sum(1)
            bias_NO = bias[experts_N.clamp(max=bias.shape[0] - 1)]
            grad_row_scale = grad_row_scale + (grad_N.float() * bias_NO).sum(1)
        grad_row_scale = torch.where(owned_N, grad_row_scale, 0)
    return grad_x, grad_w, grad_bias, grad_row_scale


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
