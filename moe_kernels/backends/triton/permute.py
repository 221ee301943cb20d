"""Gather tokens into rows.

A program reads its tokens once and writes all the rows they go to, wherever those are: so x is read once, not K times.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton.rows import tile, with_unit_columns


@triton.jit
def _permute_kernel(
    x, offsets, slot_row, out, T, E, K, H, x_stride, out_stride, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr
):
    t_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    h_H = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    token_T1 = (t_T < T)[:, None]
    column_1H = (h_H < H)[None, :]
    x_TH = tl.load(x + t_T.to(tl.int64)[:, None] * x_stride + h_H[None, :], mask=token_T1 & column_1H, other=0.0)
    slot_T = t_T.to(tl.int64) * K
    for k in range(K):
        row_T = tl.load(slot_row + slot_T + k, mask=t_T < T, other=-1).to(tl.int64)
        at_TH = out + row_T[:, None] * out_stride + h_H[None, :]
        tl.store(at_TH, x_TH, mask=(row_T >= 0)[:, None] & column_1H)

    # Rows that no expert owns belong to no slot. Each token clears those among the rows t·K to t·K + K − 1.
    owned = tl.load(offsets + E).to(tl.int64)
    if (tl.program_id(0).to(tl.int64) + 1) * BLOCK_T * K > owned:
        for k in range(K):
            row_T = slot_T + k
            at_TH = out + row_T[:, None] * out_stride + h_H[None, :]
            tl.store(at_TH, tl.zeros_like(x_TH), mask=(row_T >= owned)[:, None] & token_T1 & column_1H)


def permute_triton(x: Tensor, offsets: Tensor, row_token: Tensor, slot_row: Tensor) -> Tensor:
    """Return (N, H): row n is the token row_token[n]; rows from offsets[E] on are zero."""
    x, offsets, slot_row = with_unit_columns(x), offsets.contiguous(), slot_row.contiguous()
    (T, H), (N,) = x.shape, row_token.shape
    out = x.new_empty(N, H)
    if out.numel() == 0:
        return out
    block_T, block_H = tile(H)
    E, K = offsets.shape[0] - 1, slot_row.shape[1]
    grid = (triton.cdiv(T, block_T), triton.cdiv(H, block_H))
    _permute_kernel[grid](x, offsets, slot_row, out, T, E, K, H, x.stride(0), out.stride(0), block_T, block_H)
    return out
