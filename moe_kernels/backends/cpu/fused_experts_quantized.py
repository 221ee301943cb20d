"""The whole expert MLP with quantized weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import integers, result, result_float, rows, rows_or_none
from moe_kernels.backends.cpu.fused_experts import ACTIVATION_CODES
from moe_kernels.backends.cpu.quantized import NativeWeight
from moe_kernels.native import core, view, view_or_none


def fused_experts_quantized_cpu(
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
    x, indices, weights = rows(x), rows(indices), rows(weights)
    up, low = NativeWeight(format, gate_up, gate_up_scales), NativeWeight(format, down, down_scales)
    gate_up_bias, down_bias = rows_or_none(gate_up_bias), rows_or_none(down_bias)
    T, K = indices.shape
    out = result(x, x.shape)
    pre = result(x, (T * K, gate_up.shape[1]), save)
    offsets, row_token = integers((down.shape[0] + 1,), save), integers((T * K,), save)
    slot_row = integers((T, K), save)
    core().fused_experts_quantized(
        view(x),
        view(indices),
        view(weights),
        up.handle,
        low.handle,
        view_or_none(gate_up_bias),
        view_or_none(down_bias),
        ACTIVATION_CODES[activation],
        math.inf if limit is None else limit,
        interleaved,
        dynamic,
        view(out),
        view(pre) if save else None,
        view(offsets) if save else None,
        view(row_token) if save else None,
        view(slot_row) if save else None,
        torch.get_num_threads(),
    )
    return out, pre, offsets, row_token, slot_row


def fused_experts_quantized_backward_cpu(
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
    """Return the gradients of x, weights and the biases; empty where not needed."""
    grad, x, weights, pre = rows(grad), rows(x), rows(weights), rows(pre)
    up, low = NativeWeight(format, gate_up, gate_up_scales), NativeWeight(format, down, down_scales)
    gate_up_bias, down_bias = rows_or_none(gate_up_bias), rows_or_none(down_bias)
    needs = (need_x, need_weights, need_gate_up_bias, need_down_bias)
    grads = (
        result(x, x.shape, need_x),
        result_float(x, weights.shape, need_weights),
        result(x, (gate_up.shape[0], gate_up.shape[1]), need_gate_up_bias),
        result(x, (gate_up.shape[0], x.shape[1]), need_down_bias),
    )
    core().fused_experts_quantized_backward(
        view(grad),
        view(x),
        view(weights),
        up.handle,
        low.handle,
        view_or_none(gate_up_bias),
        view_or_none(down_bias),
        view(pre),
        view(offsets),
        view(row_token),
        view(slot_row),
        ACTIVATION_CODES[activation],
        math.inf if limit is None else limit,
        interleaved,
        *(view(g) if needed else None for g, needed in zip(grads, needs, strict=True)),
        torch.get_num_threads(),
    )
    return grads
