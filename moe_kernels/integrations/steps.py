"""The expert MLP in steps, where something has to happen between its two products: a model's own function, or LoRA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe_kernels.ops.grouped_mm import grouped_mm
from moe_kernels.ops.permute import permute
from moe_kernels.ops.route import RoutingPlan, route
from moe_kernels.ops.unpermute import unpermute
from moe_kernels.quantized_weights import QuantizedWeight

# Given the rows (N, in) of a projection and the plan, what is added to its result (N, out); or nothing.
Delta = Callable[[Tensor, RoutingPlan], Tensor | None]


class Parts(NamedTuple):
    """What an expert module is made of.

    `gate_up` (E, 2I, H) and `down` (E, H, I), or both transposed; `between` maps the pre-activation (N, 2I) to (N, I);
    `after` is applied to each expert's result (N, H). `dynamic`, `batch_invariant` and `backend` are those of the ops.
    """

    gate_up: Tensor | QuantizedWeight
    down: Tensor | QuantizedWeight
    gate_up_bias: Tensor | None
    down_bias: Tensor | None
    transposed: bool
    between: Callable[[Tensor], Tensor]
    after: Callable[[Tensor], Tensor] | None = None
    dynamic: bool = False
    batch_invariant: bool | None = None
    backend: str | None = None


def _no_delta(rows: Tensor, plan: RoutingPlan) -> None:
    return None


def experts_in_steps(
    parts: Parts,
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up_delta: Delta = _no_delta,
    down_delta: Delta = _no_delta,
) -> Tensor:
    """Compute the experts as `fused_experts` does, with deltas and the module's own functions on the way.

    Args:
        x: (T, H).
        indices: (T, K); an index of E or more is no expert.
        weights: (T, K).
        up_delta, down_delta: what is added to the projections, such as LoRA.

    Returns:
        (T, H) in x's dtype.
    """
    backend = parts.backend
    options: dict[str, Any] = dict(
        transposed=parts.transposed, dynamic=parts.dynamic, batch_invariant=parts.batch_invariant, backend=backend
    )
    plan = route(indices, parts.down.shape[0], backend=backend)
    # A delta needs the rows themselves; without one, the product gathers them as it reads.
    row_token = plan.row_token if up_delta is _no_delta else None
    rows = x if row_token is not None else permute(x, plan, backend=backend)
    pre = grouped_mm(
        rows,
        parts.gate_up,
        plan.offsets,
        bias=parts.gate_up_bias,
        base=up_delta(rows, plan),
        row_token=row_token,
        **options,
    )
    rows = parts.between(pre).to(x.dtype)
    rows = grouped_mm(rows, parts.down, plan.offsets, bias=parts.down_bias, base=down_delta(rows, plan), **options)
    if parts.after is not None:
        rows = parts.after(rows).to(x.dtype)
    return unpermute(rows, plan, weights, backend=backend)


def expert_of_row(plan: RoutingPlan) -> Tensor:
    """The expert of each row (N,) int32; E for the rows that no expert owns."""
    rows = torch.arange(plan.row_token.shape[0], dtype=torch.int32, device=plan.offsets.device)
    return torch.searchsorted(plan.offsets[1:], rows, right=True, out_int32=True)
