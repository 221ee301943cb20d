"""Tiles of the kernels that move rows: some tokens by some columns, read and written 16 bytes a thread at a time."""

from __future__ import annotations

import triton
from torch import Tensor

# Elements of a tile: with four warps, sixteen a thread. Not yet measured.
ELEMENTS = 2048


def tile(H: int) -> tuple[int, int]:
    """Return the tokens and the columns of a tile. It depends on H alone, so that no sum depends on T."""
    columns = min(ELEMENTS, triton.next_power_of_2(max(H, 16)))
    return ELEMENTS // columns, columns


def with_unit_columns(tensor: Tensor) -> Tensor:
    """Return the tensor, copied only if the elements of a row do not lie side by side."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
