"""unpermute: each token's rows, weighted and summed in slot order."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.registration import define, weight_dtype
from moe_kernels.ops.route import RoutingPlan
from moe_kernels.registry import kernel


def _run(rows: Tensor, slot_row: Tensor, weights: Tensor | None, backend: str | None) -> Tensor:
    return kernel("unpermute", backend, rows)(rows, slot_row, weights)


def _run_backward(
    grad: Tensor, rows: Tensor, slot_row: Tensor, weights: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    return kernel("unpermute", backend, rows, backward=True)(grad, rows, slot_row, weights)


def _backward_shapes(
    grad: Tensor, rows: Tensor, slot_row: Tensor, weights: Tensor | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    shape = slot_row.shape if weights is not None else (0,)
    return rows.new_empty(rows.shape), rows.new_empty(shape, dtype=weight_dtype(rows))


_backward_op = define(
    "unpermute_backward",
    "(Tensor grad, Tensor rows, Tensor slot_row, Tensor? weights, str? backend) -> (Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    rows, slot_row, weights, backend = inputs
    ctx.save_for_backward(rows, slot_row, weights)
    ctx.backend = backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    rows, slot_row, weights = ctx.saved_tensors
    grad_rows, grad_weights = _backward_op(grad, rows, slot_row, weights, ctx.backend)
    return grad_rows, None, None if weights is None else grad_weights.to(weights.dtype), None


_op = define(
    "unpermute",
    "(Tensor rows, Tensor slot_row, Tensor? weights, str? backend) -> Tensor",
    _run,
    lambda rows, slot_row, *_: rows.new_empty(slot_row.shape[0], rows.shape[1]),
    setup_context=_setup_context,
    backward=_backward,
)


def unpermute(rows: Tensor, plan: RoutingPlan, weights: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Bring rows back to their tokens: out[t] = Σ_k weights[t, k] · rows[slot_row[t, k]].

    The sum is in float32 and in the order of k. A slot without an expert contributes nothing.

    Args:
        rows: (N, H) floating.
        plan: from `route`.
        weights: (T, K) floating, or None for ones.
        backend: a backend's name that must serve the call.

    Returns:
        (T, H) in the rows' dtype.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    validation.check_unpermute(rows, plan.slot_row, weights)
    if weights is not None:
        weights = weights.to(weight_dtype(rows))
    return _op(rows, plan.slot_row, weights, backend)
