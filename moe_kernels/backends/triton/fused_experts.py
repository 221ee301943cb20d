"""fused_experts in Triton: the up-projection with its activation, the down-projection, the weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton import tiles
from moe_kernels.backends.triton.activation_gradient import activation_gradient
from moe_kernels.backends.triton.decode import decode
from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows
from moe_kernels.backends.triton.route import route_triton
from moe_kernels.backends.triton.row_reductions import slot_gradient, weight_of_row
from moe_kernels.backends.triton.unpermute import unpermute_triton
from moe_kernels.backends.triton.up_projection import up_projection
from moe_kernels.backends.triton.weight_gradients import bias_gradient, weight_gradient
from moe_kernels.backends.triton.weights import backwards, weight_of


def fused_experts_triton(
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
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (T, H) and, with `save`, pre-activation (N, 2I) and the plan; those four are empty without."""
    up, back = weight_of(gate_up, transposed), weight_of(down, transposed)
    gated = up.columns == 2 * back.k
    interleaved = interleaved and gated
    if not save and not batch_invariant and tiles.decodes(*indices.shape):
        biases = (gate_up_bias, down_bias)
        nothing = torch.empty(0, dtype=torch.int32, device=x.device)
        out = decode(x, indices, weights, up, back, *biases, activation, limit, gated, interleaved)
        return out, x.new_empty(0), nothing, nothing.clone(), nothing.clone()
    offsets, row_token, slot_row = route_triton(indices, back.E)
    act, pre = up_projection(
        x,
        up,
        gate_up_bias,
        offsets,
        row_token,
        activation,
        limit,
        gated,
        interleaved,
        save,
        batch_invariant=batch_invariant,
    )
    rows = multiply_rows(act, back, offsets, None, bias=down_bias, batch_invariant=batch_invariant)
    out = unpermute_triton(rows, slot_row, weights)
    if save:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, pre, nothing, nothing.clone(), nothing.clone()


def fused_experts_backward_triton(
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
    """Return the gradients of x, weights, gate_up, down and the biases; empty where not needed."""
    up, back = weight_of(gate_up, transposed), weight_of(down, transposed)
    gated = up.columns == 2 * back.k
    # One empty tensor each: the outputs of an op must not share memory.
    grads = [x.new_empty(0) for _ in range(6)]
    grads[1] = torch.empty(0, dtype=torch.float32, device=x.device)
    need_pre = need_x or need_gate_up or need_gate_up_bias
    row_weight = weight_of_row(weights, slot_row)
    grad_pre, weighted_act, row_sums = activation_gradient(
        grad,
        backwards(back),
        pre,
        row_weight,
        offsets,
        row_token,
        activation,
        limit,
        gated,
        interleaved and gated,
        need_pre,
        need_down,
        need_weights,
    )
    if row_sums is not None:
        grads[1] = slot_gradient(row_sums, slot_row, grad, down_bias, offsets)
    # A gradient is computed in the orientation of its weight: never a copy to turn it round.
    if weighted_act is not None:
        if transposed:
            grads[3] = weight_gradient(weighted_act, None, grad, row_token, offsets)
        else:
            grads[3] = weight_gradient(grad, row_token, weighted_act, None, offsets)
        del weighted_act
    if need_down_bias:
        grads[5] = bias_gradient(grad, row_token, row_weight, offsets)
    if grad_pre is not None:
        if need_gate_up:
            if transposed:
                grads[2] = weight_gradient(x, row_token, grad_pre, None, offsets)
            else:
                grads[2] = weight_gradient(grad_pre, None, x, row_token, offsets)
        if need_gate_up_bias:
            grads[4] = bias_gradient(grad_pre, None, None, offsets)
        if need_x:
            rows = multiply_rows(grad_pre, backwards(up), offsets, None)
            grads[0] = unpermute_triton(rows, slot_row, None)
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]
