"""Number formats of published checkpoints, turned into ordinary ones.

Letters: O rows of a matrix, H values a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The sixteen values of a 4-bit float with 2 exponent bits and 1 mantissa bit (OCP Microscaling Formats 1.0, 5.3.3).
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
MX_BLOCK = 32


def from_fp8_blocks(weight_OH: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return (O, H): an FP8 matrix times one scale for each block of rows and columns (DeepSeek-V3's format).

    Args:
        weight_OH: (O, H) float8.
        scale: (⌈O/block rows⌉, ⌈H/block columns⌉) floating: what the values are multiplied with.
        block: rows and columns of a block.
        dtype: of the result; the product is taken in float32 and rounded once.
    """
    O, H = weight_OH.shape
    expected = (-(-O // block[0]), -(-H // block[1]))
    if tuple(scale.shape) != expected:
        raise ValueError(f"from_fp8_blocks: scale: expected shape {expected}, got {tuple(scale.shape)}")
    wide = scale.float().repeat_interleave(block[0], 0)[:O].repeat_interleave(block[1], 1)[:, :H]
    return (weight_OH.float() * wide).to(dtype)


def from_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (O, H) of a matrix in MXFP4: 4-bit values, the first in the low half of a byte, and a power of two for 32.

    Args:
        blocks: (O, H/32, 16) uint8.
        scales: (O, H/32) uint8, exponents with a bias of 127.
        dtype: of the result, exact in bfloat16 and float32 but at the ends of the exponent's range.
    """
    if blocks.shape[:-1] != scales.shape or blocks.shape[-1] != MX_BLOCK // 2:
        raise ValueError(
            f"from_mxfp4: blocks: expected shape {(*scales.shape, MX_BLOCK // 2)}, got {tuple(blocks.shape)}"
        )
    values = torch.tensor(FP4_VALUES)
    codes = torch.stack((blocks & 0xF, blocks >> 4), -1).flatten(-2).int()
    wide = torch.ldexp(values[codes], (scales.int() - 127)[..., None])
    return wide.flatten(-2).to(dtype)
