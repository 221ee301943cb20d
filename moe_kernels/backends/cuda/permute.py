"""Gather tokens into rows, on CUDA."""

from __future__ import annotations

from torch import Tensor

from moe_kernels.backends.cuda.launch import launch_arguments, module, view, with_unit_columns


def permute_cuda(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor) -> Tensor:
    """Return (N, H): row n is the token row_token[n]; rows from offsets[E] on are zero."""
    x, offsets, row_token = with_unit_columns(x), offsets.contiguous(), row_token.contiguous()
    out = x.new_empty(row_token.shape[0], x.shape[1])
    module().permute(view(x), view(offsets), view(row_token), view(out), *launch_arguments(x))
    return out
