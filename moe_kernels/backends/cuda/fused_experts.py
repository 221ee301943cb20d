"""The whole expert MLP on CUDA: gathered up-projection with its activation, down-projection, weighted sum."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, optional_view, view
from moe_kernels.backends.cuda.operands import ACTIVATIONS, as_bias, as_rows, oriented
from moe_kernels.backends.cuda.products import column_sums, outer_products, rows_times_weights
from moe_kernels.backends.cuda.route import route_cuda
from moe_kernels.backends.cuda.unpermute import unpermute_cuda


def fused_experts_cuda(
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
    w_up, w_down = oriented(gate_up, transposed), oriented(down, transposed)
    E, _, I = w_down.shape
    gated = I > 0 and w_up.shape[1] == 2 * I
    x, gate_up_bias = as_rows(x), as_bias(gate_up_bias)
    offsets, row_token, slot_row = route_cuda(indices, E)
    N = row_token.shape[0]

    act_NI = x.new_empty(N, I)
    pre = x.new_empty(N, w_up.shape[1]) if save else None
    module().expert_up(
        view(x),
        view(w_up),
        view(offsets),
        view(row_token),
        optional_view(gate_up_bias),
        ACTIVATIONS.index(activation),
        math.inf if limit is None else limit,
        gated,
        interleaved,
        view(act_NI),
        optional_view(pre),
        *launch_arguments(x),
    )
    rows_NH = rows_times_weights(act_NI, w_down, offsets, None, down_bias)
    out = unpermute_cuda(rows_NH, slot_row, weights)
    if pre is not None:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, x.new_empty(0), nothing, nothing.clone(), nothing.clone()


def fused_experts_backward_cuda(
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

    One product gives dA′, the activation's gradient before the routing weight; its epilogue computes the activation
    again from `pre` and leaves the weighted activation, the gradient of `pre`, and the parts of the row sums of dA′∘A.
    """
    w_up, w_down = oriented(gate_up, transposed), oriented(down, transposed)
    I = w_down.shape[2]
    N, gated = row_token.shape[0], I > 0 and w_up.shape[1] == 2 * I
    x, grad, weights = as_rows(x), as_rows(grad), weights.contiguous()
    offsets, row_token, slot_row, pre = (t.contiguous() for t in (offsets, row_token, slot_row, pre))

    row_weight = weights.new_empty(N)
    module().row_weight(view(slot_row), view(weights), view(row_weight), *launch_arguments(x))
    act_NI, grad_pre = x.new_empty(N, I), torch.empty_like(pre)
    dots = x.new_empty(N, module().expert_dots(I), dtype=torch.float32) if need_weights else None
    module().expert_down_backward(
        view(grad),
        view(w_down.transpose(1, 2)),
        view(offsets),
        view(row_token),
        view(pre),
        view(row_weight),
        ACTIVATIONS.index(activation),
        math.inf if limit is None else limit,
        gated,
        interleaved,
        view(act_NI),
        view(grad_pre),
        optional_view(dots),
        *launch_arguments(x),
    )

    grads = [x.new_empty(0) for _ in range(6)]
    grads[1] = weights.new_empty(0)
    if dots is not None:
        grads[1] = torch.empty_like(weights)
        # A view holds no tensor: the copy has to live until the launch.
        bias_EH = as_bias(down_bias)
        arguments = (view(dots), view(slot_row), view(grad), optional_view(bias_EH), view(offsets), view(grads[1]))
        module().slot_gradient(*arguments, *launch_arguments(x))
    if need_down:
        grads[3] = outer_products(grad, row_token, act_NI, None, offsets, transposed)
    if need_down_bias:
        grads[5] = column_sums(grad, offsets, row_token, row_weight)
    if need_gate_up:
        grads[2] = outer_products(grad_pre, None, x, row_token, offsets, transposed)
    if need_gate_up_bias:
        grads[4] = column_sums(grad_pre, offsets)
    if need_x:
        grad_rows = rows_times_weights(grad_pre, w_up.transpose(1, 2), offsets, None)
        grads[0] = unpermute_cuda(grad_rows, slot_row, None)
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5]
