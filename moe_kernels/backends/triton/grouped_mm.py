"""grouped_mm in Triton."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows
from moe_kernels.backends.triton.weights import weight_of


def grouped_mm_triton(
    x: Tensor,
    w: Tensor,
    offsets: Tensor,
    transposed: bool,
    row_token: Tensor | None,
    bias: Tensor | None,
    row_scale: Tensor | None,
    slot_row: Tensor | None,
    base: Tensor | None,
    batch_invariant: bool = False,
) -> Tensor:
    """Return (N, O), or (T, O) with `slot_row` (see `moe_kernels.grouped_mm`)."""
    weight = weight_of(w, transposed)
    scatter = slot_row is not None
    rows = multiply_rows(
        x,
        weight,
        offsets,
        row_token,
        bias=bias,
        row_scale=row_scale,
        base=None if scatter else base,
        zero_tail=not scatter,
        dtype=torch.float32 if scatter else x.dtype,
        batch_invariant=batch_invariant,
    )
    if slot_row is None:
        return rows
    from moe_kernels.backends.triton.unpermute import unpermute_triton

    out = unpermute_triton(rows, slot_row, None)
    if base is not None:
        out = out + base
    return out.to(x.dtype)
