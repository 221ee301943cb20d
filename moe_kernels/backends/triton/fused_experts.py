"""fused_experts in Triton: the up-projection with its activation, the down-projection, the weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows
from moe_kernels.backends.triton.route import route_triton
from moe_kernels.backends.triton.unpermute import unpermute_triton
from moe_kernels.backends.triton.up_projection import up_projection
from moe_kernels.backends.triton.weights import weight_of


def fused_experts_triton(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    gate_up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    interleaved: bool,
    transposed: bool,
    save: bool,
    batch_invariant: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return out (T, H) and, with `save`, pre-activation (N, 2I) and the plan; those four are empty without."""
    up, back = weight_of(gate_up, transposed), weight_of(down, transposed)
    gated = up.columns == 2 * back.k
    interleaved = interleaved and gated
    offsets, row_token, slot_row = route_triton(indices, back.E)
    act, pre = up_projection(
        x,
        up,
        gate_up_bias,
        offsets,
        row_token,
        activation,
        gated,
        interleaved,
        save,
        batch_invariant=batch_invariant,
    )
    rows = multiply_rows(act, back, offsets, None, bias=down_bias, batch_invariant=batch_invariant)
    out = unpermute_triton(rows, slot_row, weights)
    if save:
        return out, pre, offsets, row_token, slot_row
    nothing = torch.empty(0, dtype=torch.int32, device=x.device)
    return out, pre, nothing, nothing.clone(), nothing.clone()
