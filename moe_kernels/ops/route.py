"""route: from expert indices to the plan of sorted rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.registration import define
from moe_kernels.registry import kernel


class RoutingPlan(NamedTuple):
    """Rows sorted by expert, then by slot t·K + k.

    offsets: (E+1) int32; expert e owns the rows offsets[e] to offsets[e+1]; offsets[E] is the number of valid rows.
    row_token: (N) int32, the token of each row; 0 from offsets[E] on.
    slot_row: (T, K) int32, the row of each slot; -1 where the slot has no expert.
    """

    offsets: Tensor
    row_token: Tensor
    slot_row: Tensor


def _run(indices: Tensor, num_experts: int, backend: str | None) -> tuple[Tensor, ...]:
    return kernel("route", backend, indices)(indices, num_experts)


def _shapes(indices: Tensor, num_experts: int, *_: Any) -> tuple[Tensor, ...]:
    T, K = indices.shape
    int32 = torch.int32
    return (
        indices.new_empty(num_experts + 1, dtype=int32),
        indices.new_empty(T * K, dtype=int32),
        indices.new_empty(T, K, dtype=int32),
    )


_op = define("route", "(Tensor indices, int num_experts, str? backend) -> (Tensor, Tensor, Tensor)", _run, _shapes)


def route(indices: Tensor, num_experts: int, *, backend: str | None = None) -> RoutingPlan:
    """Sort the slots by expert, stably.

    Args:
        indices: (T, K) int32 or int64; an index of `num_experts` or more is a sentinel: no expert, no row.
        num_experts: E, at least 1.
        backend: a backend's name that must serve the call.

    Raises:
        ValueError, TypeError: an argument does not fit, or an index is negative (seen on CPU tensors in eager mode).
    """
    validation.check_route(indices, num_experts)
    return RoutingPlan(*_op(indices, num_experts, backend))
