"""Gather tokens into rows."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import result, rows
from moe_kernels.native import core, view


def permute_cpu(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor) -> Tensor:
    """Return (N, H): row n is the token row_token[n]; rows from offsets[E] on are zero."""
    x, offsets, row_token = rows(x), rows(offsets), rows(row_token)
    out = result(x, (row_token.shape[0], x.shape[1]))
    core().permute(view(x), view(offsets), view(row_token), view(out), torch.get_num_threads())
    return out
