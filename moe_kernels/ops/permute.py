"""permute: tokens gathered into rows sorted by expert."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.registration import define
from moe_kernels.ops.route import RoutingPlan
from moe_kernels.ops.unpermute import _op as _unpermute_op
from moe_kernels.registry import kernel


def _run(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor, backend: str | None) -> Tensor:
    return kernel("permute", backend, x)(x, offsets, row_token, slot_row)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, _, slot_row, backend = inputs
    ctx.save_for_backward(slot_row)
    ctx.backend = backend


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # A token's gradient is the sum of its rows': the other op, without weights.
    (slot_row,) = ctx.saved_tensors
    return _unpermute_op(grad.contiguous(), slot_row, None, ctx.backend), None, None, None, None


_op = define(
    "permute",
    "(Tensor x, Tensor offsets, Tensor row_token, Tensor slot_row, str? backend) -> Tensor",
    _run,
    lambda x, offsets, row_token, *_: x.new_empty(row_token.shape[0], x.shape[1]),
    setup_context=_setup_context,
    backward=_backward,
)


def permute(x: Tensor, plan: RoutingPlan, *, backend: str | None = None) -> Tensor:
    """Gather tokens into rows sorted by expert.

    Args:
        x: (T, H) floating.
        plan: from `route`.
        backend: a backend's name that must serve the call.

    Returns:
        (N, H) in x's dtype; rows from offsets[E] on are zero.

    Raises:
        ValueError, TypeError: an argument does not fit; the message names it.
    """
    validation.check_permute(x, plan.offsets, plan.row_token, plan.slot_row)
    return _op(x, plan.offsets, plan.row_token, plan.slot_row, backend)
