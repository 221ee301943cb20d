"""grouped_mm with a quantized weight: the op under `grouped_mm`, which checks the arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_kernels.ops.registration import define, weight_dtype
from moe_kernels.registry import kernel


def _run(x: Tensor, w: Tensor, *others: Any) -> Tensor:
    *rest, backend, batch_invariant = others
    return kernel("grouped_mm_quantized", backend, x, w, batch_invariant=batch_invariant)(x, w, *rest)


def _shapes(
    x: Tensor,
    w: Tensor,
    scales: list[Tensor],
    offsets: Tensor,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    *_: Any,
) -> Tensor:
    rows = x.shape[0] if row_token is None else row_token.shape[0]
    return x.new_empty(rows if slot_row is None else slot_row.shape[0], w.shape[1])


def _run_backward(grad: Tensor, x: Tensor, w: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *rest, need, backend = others
    return kernel("grouped_mm_quantized", backend, x, w, backward=True)(grad, x, w, *rest, *need)


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    scales: list[Tensor],
    offsets: Tensor,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    format: str,
    need: list[bool],
    backend: str | None,
) -> tuple[Tensor, ...]:
    N = x.shape[0] if row_token is None else row_token.shape[0]
    return (
        x.new_empty(x.shape if need[0] else (0,)),
        x.new_empty(w.shape[:2] if need[1] else (0,)),
        x.new_empty((N,) if need[2] else (0,), dtype=weight_dtype(x)),
    )


_backward_op = define(
    "grouped_mm_quantized_backward",
    "(Tensor grad, Tensor x, Tensor w, Tensor[] scales, Tensor offsets, Tensor? row_token, Tensor? bias, "
    "Tensor? row_scale, Tensor? slot_row, str format, bool[] need, str? backend) -> (Tensor, Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, scales, offsets, row_token, bias, row_scale, slot_row, _, format, _, backend, _ = inputs
    ctx.save_for_backward(x, w, offsets, row_token, bias, row_scale, slot_row, *scales)
    ctx.options = (format, backend)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, w, offsets, row_token, bias, row_scale, slot_row, *scales = ctx.saved_tensors
    format, backend = ctx.options
    need = [ctx.needs_input_grad[i] for i in (0, 5, 6)]
    grads = _backward_op(grad, x, w, scales, offsets, row_token, bias, row_scale, slot_row, format, need, backend)
    gx, gb, gs = (g if needed else None for g, needed in zip(grads, need, strict=True))
    gbase = grad if ctx.needs_input_grad[8] else None
    return gx, None, [None] * len(scales), None, None, gb, gs, None, gbase, None, None, None, None


grouped_mm_quantized = define(
    "grouped_mm_quantized",
    "(Tensor x, Tensor w, Tensor[] scales, Tensor offsets, Tensor? row_token, Tensor? bias, Tensor? row_scale, "
    "Tensor? slot_row, Tensor? base, str format, bool dynamic, str? backend, "
    "bool? batch_invariant) -> Tensor",
    _run,
    _shapes,
    setup_context=_setup_context,
    backward=_backward,
)
