"""Gradients of weights and biases: sums over the rows of each expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import platform, tiles
from moe_kernels.backends.triton.grouped_mm_kernels import rows_of
from moe_kernels.backends.triton.products import multiply, rounded

# Columns and rows of the bias gradient's blocks.
SUM_COLUMNS, SUM_ROWS = 128, 32


@triton.jit
def _rows_block(
    x, gather, rows, owned, columns, inside, stride_x, GATHER: tl.constexpr, WHOLE_COLUMNS: tl.constexpr
):
    """Return (rows, columns) of a matrix, zero for rows of other experts: their NaN must not come in."""
    source = rows
    if GATHER:
        source = tl.load(gather + rows, mask=owned, other=0)
    pointers = x + (source[:, None].to(tl.int64) * stride_x + columns[None, :])
    if WHOLE_COLUMNS:
        return tl.load(pointers, mask=owned[:, None], other=0.0)
    return tl.load(pointers, mask=owned[:, None] & inside[None, :], other=0.0)


@triton.jit
def _weight_gradient_kernel(
    left,
    left_gather,
    right,
    right_gather,
    offsets,
    out,
    LEFT,
    RIGHT,
    left_blocks,
    right_blocks,
    stride_left,
    stride_right,
    BLOCK_LEFT: tl.constexpr,
    BLOCK_RIGHT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    WHOLE_LEFT: tl.constexpr,
    WHOLE_RIGHT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """One tile of one expert's left rowsᵀ · right rows. An expert without rows has a sum of nothing, zero."""
    tile = tl.program_id(0)
    tiles_of_expert = left_blocks * right_blocks
    expert = tile // tiles_of_expert
    inner = tile - expert * tiles_of_expert
    # As in the other products, tiles that run at the same time share blocks of both sides.
    group = inner // (GROUP * right_blocks)
    group_size = tl.minimum(left_blocks - group * GROUP, GROUP)
    inner -= group * GROUP * right_blocks
    left_columns = (group * GROUP + inner % group_size) * BLOCK_LEFT + tl.arange(0, BLOCK_LEFT)
    right_columns = (inner // group_size) * BLOCK_RIGHT + tl.arange(0, BLOCK_RIGHT)
    left_inside, right_inside = left_columns < LEFT, right_columns < RIGHT

    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    acc = tl.zeros((BLOCK_LEFT, BLOCK_RIGHT), tl.float32)
    for row in tl.range(start, end, BLOCK_ROWS):
        rows = row + tl.arange(0, BLOCK_ROWS)
        owned = rows < end
        a = _rows_block(
            left, left_gather, rows, owned, left_columns, left_inside, stride_left, GATHER_LEFT, WHOLE_LEFT
        )
        b = _rows_block(
            right, right_gather, rows, owned, right_columns, right_inside, stride_right, GATHER_RIGHT, WHOLE_RIGHT
        )
        acc = multiply(a.T, b, acc, INTERPRET)
    places = out + expert.to(tl.int64) * LEFT * RIGHT
    places += left_columns[:, None].to(tl.int64) * RIGHT + right_columns[None, :]
    tl.store(places, rounded(acc, out.dtype.element_ty, INTERPRET), mask=left_inside[:, None] & right_inside[None, :])


def weight_gradient(
    left: Tensor, left_gather: Tensor | None, right: Tensor, right_gather: Tensor | None, offsets: Tensor
) -> Tensor:
    """Return (E, columns of left, columns of right): each expert's left rows, transposed, times its right rows.

    A gather (N) names the row of its matrix that each of the sorted rows is.
    """
    device = platform.device_of(left)
    E, LEFT, RIGHT = offsets.shape[0] - 1, left.shape[1], right.shape[1]
    out = torch.empty(E, LEFT, RIGHT, dtype=left.dtype, device=left.device)
    rows = (left if left_gather is None else left_gather).shape[0]
    if rows == 0 or out.numel() == 0:
        return out.zero_()
    tile = tiles.gradient_tile(device, left.element_size())
    left_blocks, right_blocks = triton.cdiv(LEFT, tile.rows), triton.cdiv(RIGHT, tile.columns)
    left, right = rows_of(left), rows_of(right)
    _weight_gradient_kernel[(E * left_blocks * right_blocks,)](
        left,
        left_gather,
        right,
        right_gather,
        offsets,
        out,
        LEFT,
        RIGHT,
        left_blocks,
        right_blocks,
        left.stride(0),
        right.stride(0),
        BLOCK_LEFT=tile.rows,
        BLOCK_RIGHT=tile.columns,
        BLOCK_ROWS=tile.k,
        GROUP=tiles.GROUP_ROWS,
        GATHER_LEFT=left_gather is not None,
        GATHER_RIGHT=right_gather is not None,
        WHOLE_LEFT=LEFT % tile.rows == 0,
        WHOLE_RIGHT=RIGHT % tile.columns == 0,
        INTERPRET=platform.interpreted(),
        **tile.options,
    )
    return out


@triton.jit
def _bias_gradient_kernel(
    grad,
    gather,
    row_weight,
    offsets,
    out,
    O,
    column_blocks,
    stride_grad,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    GATHER: tl.constexpr,
    WEIGHTED: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    expert = tl.program_id(0) // column_blocks
    columns = (tl.program_id(0) % column_blocks) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = columns < O
    start, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for row in tl.range(start, end, BLOCK_ROWS):
        rows = row + tl.arange(0, BLOCK_ROWS)
        owned = rows < end
        block = _rows_block(grad, gather, rows, owned, columns, inside, stride_grad, GATHER, False).to(tl.float32)
        if WEIGHTED:
            block *= tl.load(row_weight + rows, mask=owned, other=0.0)[:, None]
        acc += block
    total = rounded(tl.sum(acc, 0), out.dtype.element_ty, INTERPRET)
    tl.store(out + expert.to(tl.int64) * O + columns, total, mask=inside)


def bias_gradient(grad: Tensor, gather: Tensor | None, row_weight: Tensor | None, offsets: Tensor) -> Tensor:
    """Return (E, O): the sum of each expert's rows of grad, each times its weight if there are weights (N)."""
    E, O = offsets.shape[0] - 1, grad.shape[1]
    out = torch.empty(E, O, dtype=grad.dtype, device=grad.device)
    if grad.numel() == 0:
        return out.zero_()
    column_blocks = triton.cdiv(O, SUM_COLUMNS)
    grad = rows_of(grad)
    _bias_gradient_kernel[(E * column_blocks,)](
        grad,
        gather,
        row_weight,
        offsets,
        out,
        O,
        column_blocks,
        grad.stride(0),
        BLOCK_ROWS=SUM_ROWS,
        BLOCK_COLUMNS=SUM_COLUMNS,
        GATHER=gather is not None,
        WEIGHTED=row_weight is not None,
        INTERPRET=platform.interpreted(),
    )
    return out
