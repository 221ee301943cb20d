"""The routing plan."""

from __future__ import annotations

from torch import Tensor

from moe_kernels.backends.cpu.arguments import integers, rows
from moe_kernels.native import core, view


def route_cpu(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets (E+1), row_token (N) and slot_row (T, K), all int32, for indices (T, K) int32 or int64."""
    T, K = indices.shape
    indices = rows(indices)
    offsets, row_token, slot_row = integers((num_experts + 1,)), integers((T * K,)), integers((T, K))
    core().route(view(indices), view(offsets), view(row_token), view(slot_row))
    return offsets, row_token, slot_row
