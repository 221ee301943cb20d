"""From the number of a tile to an expert's rows: device functions, so that the host need not know the offsets.

The rows of each expert are cut into blocks of `BLOCK_ROWS`, and a matrix of (rows, columns) into tiles, numbered expert
by expert. A program sums up the blocks of all experts once (`row_blocks`), and then finds each of its tiles with two
reductions (`locate`): a persistent program does that while it waits for nothing else, so it has to be short.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_blocks(offsets, E, N, E_PAD: tl.constexpr, BLOCK_ROWS: tl.constexpr, TAIL: tl.constexpr):
    """Return the running number of blocks of rows up to and with each expert (E_PAD), and the number of all.

    With `TAIL` the rows from offsets[E] to N count as those of one more expert, number E. `E_PAD` is a power of two,
    larger than E with `TAIL`.
    """
    expert = tl.arange(0, E_PAD)
    start = tl.load(offsets + expert, mask=expert <= E, other=0)
    end = tl.load(offsets + expert + 1, mask=expert < E, other=0)
    if TAIL:
        end = tl.where(expert == E, N, end)
        rows = tl.where(expert <= E, end - start, 0)
    else:
        rows = tl.where(expert < E, end - start, 0)
    blocks = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    return tl.cumsum(blocks, 0), tl.sum(blocks, 0)


@triton.jit
def locate(
    tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS: tl.constexpr, GROUP_ROWS: tl.constexpr, TAIL: tl.constexpr
):
    """Return a tile's expert, first row, the end of the expert's rows, and its block of columns.

    The tiles of an expert are neighbours. Among them, `GROUP_ROWS` blocks of rows go through all columns together, rows
    first: the tiles that run at the same time share both their rows and their columns of the weight in the L2 cache.
    """
    before = ends * column_blocks <= tile
    expert = tl.sum(before.to(tl.int32), 0)
    first_block = tl.max(tl.where(before, ends, 0), 0)
    start = tl.load(offsets + expert)
    if TAIL:
        end = tl.load(offsets + expert + 1, mask=expert < E, other=0)
        end = tl.where(expert < E, end, N)
    else:
        end = tl.load(offsets + expert + 1)
    blocks = (end - start + BLOCK_ROWS - 1) // BLOCK_ROWS
    inner = tile - first_block * column_blocks
    in_group = GROUP_ROWS * column_blocks
    group = inner // in_group
    group_first = group * GROUP_ROWS
    group_rows = tl.minimum(blocks - group_first, GROUP_ROWS)
    inner = inner - group * in_group
    row = start + (group_first + inner % group_rows) * BLOCK_ROWS
    return expert, row, end, inner // group_rows
