"""The whole expert MLP: route, up-projection, activation, down-projection, weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.activations import activate, activate_backward
from moe_kernels.backends.reference.groups import (
    accumulate_dtype,
    grouped_matmul,
    grouped_outer,
    grouped_sum,
    per_row,
)
from moe_kernels.backends.reference.route import route_reference
from moe_kernels.backends.reference.unpermute import unpermute_reference


def _orient(w: Tensor, transposed: bool) -> Tensor:
    return w.transpose(1, 2) if transposed else w


def fused_experts_reference(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (T, H) and, with `save`, pre-activation (N, 2I) and the plan; those four are empty without."""
    w_up, w_down = _orient(gate_up, transposed), _orient(down, transposed)
    E, _, I = w_down.shape
    wide = accumulate_dtype(x)
    offsets, row_token, slot_row = route_reference(indices, E)

    pre = grouped_matmul(x[row_token], w_up, offsets, gate_up_bias)
    act = activate(pre.to(wide), activation, limit, w_up.shape[1] == 2 * I, interleaved).to(x.dtype)
    rows = grouped_matmul(act, w_down, offsets, down_bias).to(wide)
    out = unpermute_reference(rows, slot_row, weights).to(x.dtype)
    if save:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, x.new_empty(0), nothing, nothing.clone(), nothing.clone()


def fused_experts_backward_reference(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    slot_row: Tensor,
    activation: str,
    limit: float | None,
    interleaved: bool,
    transposed: bool,
    need_x: bool,
    need_weights: bool,
    need_gate_up: bool,
    need_down: bool,
    need_gate_up_bias: bool,
    need_down_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, gate_up, down and the biases; empty where not needed.

    The activation is computed again from `pre`. The routing weights' gradient is the row sum of dA′∘A, with dA′ the
    activation's gradient before the weight, so the down-projection's output is never needed.
    """
    w_up, w_down = _orient(gate_up, transposed), _orient(down, transposed)
    I, gated = w_down.shape[2], w_up.shape[1] == 2 * w_down.shape[2]
    wide = accumulate_dtype(x)
    T, K = slot_row.shape
    N = row_token.shape[0]
    owned_N = torch.arange(N, device=x.device) < offsets[-1]
    assert pre.shape == (N, 2 * I if gated else I)

    weight_N = _weight_of_row(weights.to(wide), slot_row)[:, None]
    grad_rows = torch.where(owned_N[:, None], grad[row_token], 0)
    grad_act = grouped_matmul(grad_rows, w_down.transpose(1, 2), offsets).to(wide)
    act = torch.where(owned_N[:, None], activate(pre.to(wide), activation, limit, gated, interleaved), 0)

    grads = [x.new_empty(0) for _ in range(6)]
    if need_weights:
        by_row = (grad_act * act).sum(1)
        if down_bias is not None:
            by_row = by_row + (grad_rows.to(wide) * per_row(down_bias.to(wide), offsets, N)).sum(1)
        picked = by_row[slot_row.clamp(min=0)] if N else by_row.view(T, K)
        grads[1] = torch.where(slot_row >= 0, picked, 0)
    else:
        grads[1] = torch.empty(0, dtype=wide, device=x.device)
    if need_down:
        grads[3] = grouped_outer(grad_rows, (weight_N * act).to(x.dtype), offsets)
    if need_down_bias:
        grads[5] = grouped_sum(weight_N * grad_rows.to(wide), offsets).to(x.dtype)
    if need_x or need_gate_up or need_gate_up_bias:
        grad_pre = activate_backward(pre.to(wide), weight_N * grad_act, activation, limit, gated, interleaved)
        grad_pre = torch.where(owned_N[:, None], grad_pre, 0)
        if need_gate_up_bias:
            grads[4] = grouped_sum(grad_pre, offsets).to(x.dtype)
        grad_pre = grad_pre.to(x.dtype)
        if need_gate_up:
            grads[2] = grouped_outer(grad_pre, x[row_token], offsets)
        if need_x:
            grad_x = grouped_matmul(grad_pre, w_up.transpose(1, 2), offsets)
            grads[0] = unpermute_reference(grad_x, slot_row, None)
    if transposed:
        for i, needed in ((2, need_gate_up), (3, need_down)):
            grads[i] = grads[i].transpose(1, 2).contiguous() if needed else grads[i]
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]


def _weight_of_row(weights: Tensor, slot_row: Tensor) -> Tensor:
    """Give each row the weight of its slot (N,); zero for the rows that no slot owns."""
    N = slot_row.numel()
    slot_row_N = slot_row.reshape(N).to(torch.int64)
    target = torch.where(slot_row_N >= 0, slot_row_N, N)
    return weights.new_zeros(N + 1).scatter_(0, target, weights.reshape(N))[:N]
