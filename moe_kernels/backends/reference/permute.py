"""Gather tokens into rows."""

from __future__ import annotations

import torch
from torch import Tensor


def permute_reference(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor) -> Tensor:
    """Return (N, H): row n is the token row_token[n]; rows from offsets[E] on are zero."""
    rows = x[row_token]
    owned = torch.arange(row_token.shape[0], device=x.device) < offsets[-1]
    return torch.where(owned[:, None], rows, torch.zeros_like(rows))
