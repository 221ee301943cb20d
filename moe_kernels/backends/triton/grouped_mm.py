"""grouped_mm in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows
from moe_kernels.backends.triton.row_reductions import row_dots, sum_by_token
from moe_kernels.backends.triton.weight_gradients import bias_gradient, weight_gradient
from moe_kernels.backends.triton.weights import backwards, weight_of


def grouped_mm_triton(
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
    batch_invariant: bool = False,
) -> Tensor:
    """Return (N, O), or (T, O) with `slot_row` (see `moe_kernels.grouped_mm`)."""
    weight = weight_of(w, transposed)
    scatter = slot_row is not None
    rows = multiply_rows(
        x,
        weight,
        offsets,
        row_token,
        bias=bias,
        row_scale=row_scale,
        base=None if scatter else base,
        zero_tail=not scatter,
        dtype=torch.float32 if scatter else x.dtype,
        batch_invariant=batch_invariant,
    )
    if slot_row is None:
        return rows
    from moe_kernels.backends.triton.unpermute import unpermute_triton

    out = unpermute_triton(rows, slot_row, None)
    if base is not None:
        out = out + base
    return out.to(x.dtype)


def grouped_mm_backward_triton(
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
    weight = backwards(weight_of(w, transposed))
    if slot_row is not None:
        from moe_kernels.backends.triton.unpermute import unpermute_backward_triton

        like = torch.empty(slot_row.numel(), grad.shape[1], dtype=x.dtype, device=x.device)
        grad, _ = unpermute_backward_triton(grad, like, slot_row, None)
    scaled = grad if row_scale is None else (grad * row_scale[:, None]).to(x.dtype)

    grad_x, grad_w, grad_bias = x.new_empty(0), x.new_empty(0), x.new_empty(0)
    grad_row_scale = torch.empty(0, dtype=torch.float32, device=x.device)
    if need_x:
        grad_x = multiply_rows(scaled, weight, offsets, None, zero_tail=row_token is None)
        if row_token is not None:
            grad_x = sum_by_token(grad_x, row_token, offsets, x.shape[0])
    if need_w:
        sides = ((scaled, None), (x, row_token))
        (left, left_gather), (right, right_gather) = reversed(sides) if transposed else sides
        grad_w = weight_gradient(left, left_gather, right, right_gather, offsets)
    if need_bias:
        grad_bias = bias_gradient(scaled, None, None, offsets)
    if need_row_scale:
        # ∂/∂scale of scale·(xWᵀ + b), as x·(gW) + g·b: no second forward product is stored.
        back = multiply_rows(grad, weight, offsets, None, dtype=torch.float32)
        grad_row_scale = row_dots(back, x, row_token, grad, bias, offsets)
    return grad_x, grad_w, grad_bias, grad_row_scale
