"""The routing plan, on CUDA."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, view


def route_cuda(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets (E+1), row_token (N) and slot_row (T, K), all int32, for indices (T, K) int32 or int64."""
    T, K = indices.shape
    indices = indices.contiguous()

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=indices.device)

    offsets, row_token, slot_row = integers(num_experts + 1), integers(T * K), integers(T, K)
    scratch = integers(module().route_scratch(T * K, num_experts))
    module().route(
        view(indices), view(offsets), view(row_token), view(slot_row), view(scratch), *launch_arguments(indices)
    )
    return offsets, row_token, slot_row
