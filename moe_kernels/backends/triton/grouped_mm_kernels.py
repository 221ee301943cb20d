"""Rows times their expert's weight: the kernel under grouped_mm, the down-projection and the gradients of rows."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import platform, tiles
from moe_kernels.backends.triton.products import product, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks
from moe_kernels.backends.triton.tiles import Tile
from moe_kernels.backends.triton.weights import Weight, takes_descriptor


@triton.jit
def _grouped_mm_kernel(
    x,
    gather,
    w,
    bias,
    row_scale,
    base,
    offsets,
    out,
    E,
    N,
    K_SIZE,
    O,
    column_blocks,
    stride_x,
    stride_e,
    stride_column,
    stride_k,
    stride_out,
    stride_base,
    E_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    GATHER: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    BASE: tl.constexpr,
    TAIL: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, TAIL)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, TAIL)
        column = block * BLOCK_COLUMNS
        rows, owned, pointers = row_pointers(x, gather, row, end, stride_x, BLOCK_ROWS, GATHER)
        stop = K_SIZE
        if TAIL:
            # The rows of no expert are zero, and there is no weight to read for them.
            stop = tl.where(expert < E, K_SIZE, 0)
        acc = product(
            pointers,
            w,
            expert,
            column,
            O,
            K_SIZE,
            stop,
            stride_e,
            stride_column,
            stride_k,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
            INTERPRET,
        )
        columns = column + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < O
        if BIAS:
            biased = columns < tl.where(expert < E, O, 0)
            added = tl.load(bias + expert.to(tl.int64) * O + columns, mask=biased, other=0.0)
            acc += added.to(tl.float32)[None, :]
        if SCALE:
            acc *= tl.load(row_scale + rows, mask=rows < tl.where(expert < E, end, 0), other=0.0)[:, None]
        mask = owned[:, None] & inside[None, :]
        if BASE:
            places = rows[:, None].to(tl.int64) * stride_base + columns[None, :]
            acc += tl.load(base + places, mask=mask, other=0.0).to(tl.float32)
        places = rows[:, None].to(tl.int64) * stride_out + columns[None, :]
        tl.store(out + places, rounded(acc, out.dtype.element_ty, INTERPRET), mask=mask)


def rows_of(x: Tensor) -> Tensor:
    """Return a matrix whose rows are dense."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


def constants(tile: Tile, weight: Weight, columns: int, descriptor: bool, E_PAD: int) -> dict[str, Any]:
    """Return the compile-time arguments that the kernels with a weight share; `columns` are those of one block."""
    return {
        "E_PAD": E_PAD,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": columns,
        "BLOCK_K": tile.k,
        "GROUP_ROWS": tiles.GROUP_ROWS,
        "TRANSPOSED": weight.transposed,
        "DESCRIPTOR": descriptor,
        "WHOLE_K": weight.k % tile.k == 0,
        "INTERPRET": platform.interpreted(),
    }


def multiply_rows(
    x: Tensor,
    weight: Weight,
    offsets: Tensor,
    gather: Tensor | None,
    *,
    bias: Tensor | None = None,
    row_scale: Tensor | None = None,
    base: Tensor | None = None,
    zero_tail: bool = False,
    dtype: torch.dtype | None = None,
    batch_invariant: bool = False,
    descriptors: bool | None = None,
) -> Tensor:
    """Return (N, columns): each row of x, or the row that `gather` (N) names, times its expert's weight.

    Args:
        zero_tail: write zeros (or `base`) to the rows from offsets[E] on, which are otherwise left undefined.
        dtype: the result's, x's by default.
        descriptors: whether to use tensor descriptors; by default, where the device and the weight's layout have them.
    """
    device = platform.device_of(x)
    N = x.shape[0] if gather is None else gather.shape[0]
    E, O = weight.E, weight.columns
    out = torch.empty(N, O, dtype=dtype or x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    tile = tiles.rows_tile(device, x.element_size(), N, E, batch_invariant)
    descriptor = takes_descriptor(weight, device) if descriptors is None else descriptors
    column_blocks = triton.cdiv(O, tile.columns)
    x = rows_of(x)
    grid = (tiles.programs(device, tile, N, E + int(zero_tail), column_blocks),)
    _grouped_mm_kernel[grid](
        x,
        gather,
        weight.argument(tile.columns, tile.k, descriptor),
        None if bias is None else bias.contiguous(),
        None if row_scale is None else row_scale.contiguous(),
        None if base is None else rows_of(base),
        offsets,
        out,
        E,
        N,
        weight.k,
        O,
        column_blocks,
        x.stride(0),
        *weight.strides,
        out.stride(0),
        0 if base is None else rows_of(base).stride(0),
        GATHER=gather is not None,
        BIAS=bias is not None,
        SCALE=row_scale is not None,
        BASE=base is not None,
        TAIL=zero_tail,
        WHOLE_COLUMNS=O % tile.columns == 0,
        **constants(tile, weight, tile.columns, descriptor, triton.next_power_of_2(E + 1)),
        **tile.options,
    )
    return out
