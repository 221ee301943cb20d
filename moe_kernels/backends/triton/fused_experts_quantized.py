"""The whole expert MLP with quantized weights in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton.dequantize import round_rows
from moe_kernels.backends.triton.fused_experts import fused_experts_backward_triton
from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows
from moe_kernels.backends.triton.quantized import (
    Quantized,
    dequantizes_in_load,
    multiply_rows_quantized,
    rounded_activation,
    up_projection_quantized,
)
from moe_kernels.backends.triton.route import route_triton
from moe_kernels.backends.triton.unpermute import unpermute_triton
from moe_kernels.backends.triton.up_projection import up_projection
from moe_kernels.backends.triton.weights import weight_of


def fused_experts_quantized_triton(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: list[Tensor],
    down: Tensor,
    down_scales: list[Tensor],
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    format: str,
    activation: str,
    limit: float | None,
    interleaved: bool,
    dynamic: bool,
    save: bool,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (T, H) and, with `save`, pre-activation (N, 2I) and the plan; those four are empty without."""
    up, back = Quantized(format, gate_up, gate_up_scales), Quantized(format, down, down_scales)
    gated = up.columns == 2 * back.k
    form = (activation, limit, gated, interleaved and gated)
    offsets, row_token, slot_row = route_triton(indices, up.E)
    if dynamic:
        x_rows, x_scale = round_rows(x)
        pre = multiply_rows_quantized(
            x_rows, up, offsets, row_token, dtype=x.dtype, x_scale=x_scale, bias=gate_up_bias, zero_tail=save
        )
        act, act_scale = rounded_activation(pre, offsets, *form)
        rows = multiply_rows_quantized(act, back, offsets, None, dtype=torch.float32, x_scale=act_scale, bias=down_bias)
    elif dequantizes_in_load(row_token.shape[0], up.E, batch_invariant):
        act, pre = up_projection_quantized(
            x, up, gate_up_bias, offsets, row_token, *form, save, batch_invariant=batch_invariant
        )
        rows = multiply_rows_quantized(
            act, back, offsets, None, dtype=x.dtype, bias=down_bias, batch_invariant=batch_invariant
        )
    else:
        # One of the two dequantized weights at a time.
        w_up = weight_of(up.dequantized(offsets, x.dtype), False)
        act, pre = up_projection(x, w_up, gate_up_bias, offsets, row_token, *form, save)
        del w_up
        w_down = weight_of(back.dequantized(offsets, x.dtype), False)
        rows = multiply_rows(act, w_down, offsets, None, bias=down_bias)
    out = unpermute_triton(rows, slot_row, weights, dtype=x.dtype)
    if save:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, x.new_empty(0), nothing, nothing.clone(), nothing.clone()


def fused_experts_quantized_backward_triton(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scales: list[Tensor],
    down: Tensor,
    down_scales: list[Tensor],
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    pre: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    slot_row: Tensor,
    format: str,
    activation: str,
    limit: float | None,
    interleaved: bool,
    need_x: bool,
    need_weights: bool,
    need_gate_up_bias: bool,
    need_down_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights and the biases; empty where not needed.

    They are those of the products with unrounded activations, also where the forward rounded them ("straight-through").
    """
    w_up = Quantized(format, gate_up, gate_up_scales).dequantized(offsets, x.dtype)
    w_down = Quantized(format, down, down_scales).dequantized(offsets, x.dtype)
    grads = fused_experts_backward_triton(
        grad,
        x,
        weights,
        w_up,
        w_down,
        gate_up_bias,
        down_bias,
        pre,
        offsets,
        row_token,
        slot_row,
        activation,
        limit,
        interleaved,
        False,
        need_x,
        need_weights,
        False,
        False,
        need_gate_up_bias,
        need_down_bias,
    )
    return grads[0], grads[1], grads[4], grads[5]
