"""The whole expert MLP with quantized weights: the unquantized one on what they stand for."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.activations import activate
from moe_kernels.backends.reference.dequantize import dequantized, rounded_rows
from moe_kernels.backends.reference.fused_experts import fused_experts_backward_reference, fused_experts_reference
from moe_kernels.backends.reference.groups import accumulate_dtype, grouped_matmul
from moe_kernels.backends.reference.route import route_reference
from moe_kernels.backends.reference.unpermute import unpermute_reference


def fused_experts_quantized_reference(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (T, H) and, with `save`, pre-activation (N, 2I) and the plan; those four are empty without."""
    if not dynamic:
        w_up = dequantized(format, gate_up, gate_up_scales, x.dtype)
        w_down = dequantized(format, down, down_scales, x.dtype)
        return fused_experts_reference(
            x, indices, weights, w_up, w_down, gate_up_bias, down_bias, activation, limit, interleaved, False, save
        )

    # Products of integers are exact where they are summed, so nothing is rounded to x's dtype on the way into one.
    wide = accumulate_dtype(x)
    w_up, w_down = dequantized(format, gate_up, gate_up_scales, wide), dequantized(format, down, down_scales, wide)
    offsets, row_token, slot_row = route_reference(indices, w_down.shape[0])
    rows_NH = rounded_rows(x.to(wide))[row_token]
    pre = grouped_matmul(rows_NH, w_up, offsets, _to(gate_up_bias, wide)).to(x.dtype)
    act = activate(pre.to(wide), activation, limit, w_up.shape[1] == 2 * w_down.shape[2], interleaved)
    rows_NH = grouped_matmul(rounded_rows(act), w_down, offsets, _to(down_bias, wide))
    out = unpermute_reference(rows_NH, slot_row, weights).to(x.dtype)
    if save:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, x.new_empty(0), nothing, nothing.clone(), nothing.clone()


def _to(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype)


def fused_experts_quantized_backward_reference(
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
    grads = fused_experts_backward_reference(
        grad,
        x,
        weights,
        dequantized(format, gate_up, gate_up_scales, x.dtype),
        dequantized(format, down, down_scales, x.dtype),
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
