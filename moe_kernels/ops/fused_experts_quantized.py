"""fused_experts with quantized weights: the op under `fused_experts`, which checks the arguments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moe_kernels.ops.registration import define, weight_dtype
from moe_kernels.registry import kernel


def _run(x: Tensor, indices: Tensor, weights: Tensor, gate_up: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *rest, backend, batch_invariant = others
    down = rest[1]
    call = kernel("fused_experts_quantized", backend, x, gate_up, down, batch_invariant=batch_invariant)
    return call(x, indices, weights, gate_up, *rest)


def _shapes(
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
    backend: str | None,
    batch_invariant: bool | None,
) -> tuple[Tensor, ...]:
    T, K = indices.shape
    int32 = torch.int32
    return (
        x.new_empty(x.shape),
        x.new_empty((T * K, gate_up.shape[1]) if save else (0,)),
        x.new_empty((down.shape[0] + 1,) if save else (0,), dtype=int32),
        x.new_empty((T * K,) if save else (0,), dtype=int32),
        x.new_empty((T, K) if save else (0,), dtype=int32),
    )


def _run_backward(grad: Tensor, x: Tensor, weights: Tensor, gate_up: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *rest, need, backend = others
    down = rest[1]
    call = kernel("fused_experts_quantized", backend, x, gate_up, down, backward=True)
    return call(grad, x, weights, gate_up, *rest, *need)


def _backward_shapes(
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
    need: list[bool],
    backend: str | None,
) -> tuple[Tensor, ...]:
    def like(value: Tensor | None, needed: bool, dtype: torch.dtype = x.dtype) -> Tensor:
        return x.new_empty(value.shape if value is not None and needed else (0,), dtype=dtype)

    return (
        like(x, need[0]),
        like(weights, need[1], weight_dtype(x)),
        like(gate_up_bias, need[2]),
        like(down_bias, need[3]),
    )


_backward_op = define(
    "fused_experts_quantized_backward",
    "(Tensor grad, Tensor x, Tensor weights, Tensor gate_up, Tensor[] gate_up_scales, Tensor down, "
    "Tensor[] down_scales, Tensor? gate_up_bias, Tensor? down_bias, Tensor pre, Tensor offsets, Tensor row_token, "
    "Tensor slot_row, str format, str activation, float? limit, bool interleaved, bool[] need, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, _, weights, gate_up, up_scales, down, down_scales, up_bias, down_bias, *options = inputs
    format, activation, limit, interleaved, _, save, backend, _ = options
    _, pre, offsets, row_token, slot_row = output
    ctx.mark_non_differentiable(pre, offsets, row_token, slot_row)
    plan = (pre, offsets, row_token, slot_row) if save else ()
    ctx.save_for_backward(x, weights, gate_up, down, up_bias, down_bias, *up_scales, *down_scales, *plan)
    ctx.counts = (len(up_scales), len(down_scales))
    ctx.options = (format, activation, limit, interleaved, save, backend)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    format, activation, limit, interleaved, save, backend = ctx.options
    if not save:
        raise RuntimeError("fused_experts: backward of a call that was made with save=False")
    x, weights, gate_up, down, up_bias, down_bias, *rest = ctx.saved_tensors
    ups, downs = ctx.counts
    up_scales, down_scales, plan = rest[:ups], rest[ups : ups + downs], rest[ups + downs :]
    need = [ctx.needs_input_grad[i] for i in (0, 2, 7, 8)]
    grads = _backward_op(
        grad,
        x,
        weights,
        gate_up,
        up_scales,
        down,
        down_scales,
        up_bias,
        down_bias,
        *plan,
        format,
        activation,
        limit,
        interleaved,
        need,
        backend,
    )
    gx, gweights, gup_bias, gdown_bias = (g if n else None for g, n in zip(grads, need, strict=True))
    options = (None,) * 8
    return gx, None, gweights, None, [None] * ups, None, [None] * downs, gup_bias, gdown_bias, *options


fused_experts_quantized = define(
    "fused_experts_quantized",
    "(Tensor x, Tensor indices, Tensor weights, Tensor gate_up, Tensor[] gate_up_scales, Tensor down, "
    "Tensor[] down_scales, Tensor? gate_up_bias, Tensor? down_bias, str format, str activation, float? limit, "
    "bool interleaved, bool dynamic, bool save, str? backend, bool? batch_invariant) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _run,
    _shapes,
    setup_context=_setup_context,
    backward=_backward,
)
