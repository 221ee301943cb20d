"""The whole expert MLP."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import integers, result, result_float, rows, rows_or_none, weight
from moe_kernels.backends.cpu.kept_memory import kept_result
from moe_kernels.native import core, view, view_or_none

# The codes of csrc/cpu/isa/kernels.h.
ACTIVATION_CODES = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4, "gpt_oss": 5}


def fused_experts_cpu(
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
    x, indices, weights = rows(x), rows(indices), rows(weights)
    gate_up, down = weight(gate_up), weight(down)
    gate_up_bias, down_bias = rows_or_none(gate_up_bias), rows_or_none(down_bias)
    T, K = indices.shape
    out = result(x, x.shape)
    pre, _ = kept_result(x, (T * K, gate_up.shape[2 if transposed else 1]), save)
    offsets, row_token = integers((down.shape[0] + 1,), save), integers((T * K,), save)
    slot_row = integers((T, K), save)
    core().fused_experts(
        view(x),
        view(indices),
        view(weights),
        view(gate_up),
        view(down),
        view_or_none(gate_up_bias),
        view_or_none(down_bias),
        ACTIVATION_CODES[activation],
        math.inf if limit is None else limit,
        interleaved,
        transposed,
        view(out),
        view(pre) if save else None,
        view(offsets) if save else None,
        view(row_token) if save else None,
        view(slot_row) if save else None,
        torch.get_num_threads(),
    )
    return out, pre, offsets, row_token, slot_row


# One of them in all of a call's tensors, but for indices and routing weights.
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def fused_experts_unchecked_cpu(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    transposed: bool,
) -> Tensor | None:
    """Return out (T, H) of arguments that nobody has checked, or None where one of them needs attention.

    Between two reads of all the weights of a layer nothing of Python is in the caches, so that each function of torch's
    costs 1 to 40 µs there. With one token the way through validation, registry and dispatcher was 0.2 to 0.4 ms of 4.
    """
    try:
        dtype = x.dtype
        if dtype not in _DTYPES:
            return None
        for w in (gate_up, down, gate_up_bias, down_bias):
            if w is not None and w.dtype is not dtype:
                return None
        out = torch.empty_like(x)
        done = core().fused_experts_unchecked(
            view(x),
            view(indices),
            view(weights),
            view(gate_up),
            view(down),
            view_or_none(gate_up_bias),
            view_or_none(down_bias),
            ACTIVATION_CODES[activation],
            transposed,
            view(out),
            torch.get_num_threads(),
        )
    except (AttributeError, KeyError, RuntimeError, TypeError):
        # The type, shape, strides or dtype of an argument: the way with checks names it, or makes a copy.
        return None
    return out if done else None


def fused_experts_backward_cpu(
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
    into: tuple[Tensor | None, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weights, gate_up, down and the biases; empty where not needed.

    `into` are gradients of gate_up and down that theirs are added to; those returned are then empty.
    """
    grad, x, weights, pre = rows(grad), rows(x), rows(weights), rows(pre)
    gate_up, down = weight(gate_up), weight(down)
    gate_up_bias, down_bias = rows_or_none(gate_up_bias), rows_or_none(down_bias)
    E, wide = gate_up.shape[0], gate_up.shape[2 if transposed else 1]
    needs = (need_x, need_weights, need_gate_up, need_down, need_gate_up_bias, need_down_bias)
    grad_gate_up, gate_up_used = kept_result(gate_up, gate_up.shape, need_gate_up and into is None)
    grad_down, down_used = kept_result(down, down.shape, need_down and into is None)
    grads = (
        result(x, x.shape, need_x),
        result_float(x, weights.shape, need_weights),
        grad_gate_up,
        grad_down,
        result(x, (E, wide), need_gate_up_bias),
        result(x, (E, x.shape[1]), need_down_bias),
    )
    core().fused_experts_backward(
        view(grad),
        view(x),
        view(weights),
        view(gate_up),
        view(down),
        view_or_none(gate_up_bias),
        view_or_none(down_bias),
        view(pre),
        view(offsets),
        view(row_token),
        view(slot_row),
        ACTIVATION_CODES[activation],
        math.inf if limit is None else limit,
        interleaved,
        transposed,
        *(view(g) if needed else None for g, needed in zip(grads[:2], needs[:2], strict=True)),
        *(view_or_none(g) if n else None for g, n in zip(into or grads[2:4], needs[2:4], strict=True)),
        *(view(g) if needed else None for g, needed in zip(grads[4:], needs[4:], strict=True)),
        into is not None,
        gate_up_used and down_used,
        torch.get_num_threads(),
    )
    return grads
