"""fused_experts for a few tokens: three launches, and no plan.

Every program looks for its expert's slots itself, in all T·K indices. What counts is that all processors read weights
all the time, so the blocks of columns are narrow and there are several programs per processor. Rows are named by slot.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import platform, tiles
from moe_kernels.backends.triton.grouped_mm_kernels import rows_of
from moe_kernels.backends.triton.products import product, rounded
from moe_kernels.backends.triton.tiles import Tile
from moe_kernels.backends.triton.up_projection import activated_tile
from moe_kernels.backends.triton.weights import Weight, takes_descriptor

COMBINED_COLUMNS = 512


@triton.jit
def _find_slots(indices, candidate, N, E, SLOTS: tl.constexpr, BY_SLOT: tl.constexpr):
    """Return the expert to work on, each slot's rank among the expert's slots (-1 for others), and their number.

    Candidates are the experts; or, where there are fewer slots than experts, the slots, and the first slot of an expert
    stands for it. Where there is nothing to do, the number is 0.
    """
    slots = tl.arange(0, SLOTS)
    index = tl.minimum(tl.load(indices + slots, mask=slots < N, other=E), E).to(tl.int32)
    expert = candidate
    if BY_SLOT:
        expert = tl.sum(tl.where(slots == candidate, index, 0), 0)
        earlier = tl.sum(tl.where(slots < candidate, (index == expert).to(tl.int32), 0), 0)
        expert = tl.where(earlier > 0, E, expert)
    # No slot of index E is one of expert E: there is no such expert.
    mine = tl.where(index == expert, 1, 0) * tl.where(expert < E, 1, 0)
    rank = tl.where(mine > 0, tl.cumsum(mine, 0) - 1, -1)
    return expert, rank, tl.sum(mine, 0)


@triton.jit
def _slots_of_rank(rank, first, SLOTS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return the slots that have the ranks from `first` on; 0 where there is none."""
    wanted = first + tl.arange(0, BLOCK_ROWS)
    slots = tl.arange(0, SLOTS)
    return tl.sum(tl.where(rank[None, :] == wanted[:, None], slots[None, :], 0), 1)


@triton.jit
def _decode_up_kernel(
    x,
    indices,
    w,
    bias,
    act,
    N,
    E,
    H,
    I,
    column_blocks,
    stride_x,
    stride_e,
    stride_column,
    stride_k,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BY_SLOT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    candidate = tl.program_id(0) // column_blocks
    column = (tl.program_id(0) % column_blocks) * BLOCK_COLUMNS
    columns = column + tl.arange(0, BLOCK_COLUMNS)
    expert, rank, count = _find_slots(indices, candidate, N, E, SLOTS, BY_SLOT)
    for first in tl.range(0, count, BLOCK_ROWS):
        slots = _slots_of_rank(rank, first, SLOTS, BLOCK_ROWS)
        owned = first + tl.arange(0, BLOCK_ROWS) < count
        value = activated_tile(
            x + (slots // K).to(tl.int64) * stride_x,
            slots,
            owned,
            w,
            bias,
            None,
            expert,
            column,
            E,
            H,
            I,
            stride_e,
            stride_column,
            stride_k,
            act.dtype.element_ty,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            ACTIVATION,
            LIMIT,
            GATED,
            INTERLEAVED,
            BIAS,
            False,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
            INTERPRET,
        )
        mask = owned[:, None] & (columns < I)[None, :]
        tl.store(act + slots[:, None].to(tl.int64) * I + columns[None, :], value, mask=mask)


@triton.jit
def _decode_down_kernel(
    act,
    indices,
    w,
    bias,
    rows,
    N,
    E,
    I,
    H,
    column_blocks,
    stride_e,
    stride_column,
    stride_k,
    SLOTS: tl.constexpr,
    BY_SLOT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BIAS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    candidate = tl.program_id(0) // column_blocks
    column = (tl.program_id(0) % column_blocks) * BLOCK_COLUMNS
    columns = column + tl.arange(0, BLOCK_COLUMNS)
    expert, rank, count = _find_slots(indices, candidate, N, E, SLOTS, BY_SLOT)
    for first in tl.range(0, count, BLOCK_ROWS):
        slots = _slots_of_rank(rank, first, SLOTS, BLOCK_ROWS)
        owned = first + tl.arange(0, BLOCK_ROWS) < count
        acc = product(
            act + slots.to(tl.int64) * I,
            owned,
            w,
            expert,
            column,
            H,
            I,
            I,
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
        if BIAS:
            added = tl.load(bias + expert.to(tl.int64) * H + columns, mask=columns < H, other=0.0)
            acc += added.to(tl.float32)[None, :]
        mask = owned[:, None] & (columns < H)[None, :]
        tl.store(rows + slots[:, None].to(tl.int64) * H + columns[None, :], acc, mask=mask)


@triton.jit
def _decode_combine_kernel(
    rows, indices, weights, out, E, H, column_blocks, K: tl.constexpr, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr
):
    token = tl.program_id(0) // column_blocks
    columns = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((COLUMNS,), tl.float32)
    for k in tl.range(0, K):
        slot = token.to(tl.int64) * K + k
        # A sentinel's row was never written, and its weight may be NaN.
        end = tl.where(tl.load(indices + slot) < E, H, 0)
        row = tl.load(rows + slot * H + columns, mask=columns < end, other=0.0)
        acc += tl.where(columns < end, row * tl.load(weights + slot), 0.0)
    value = rounded(acc, out.dtype.element_ty, INTERPRET)
    tl.store(out + token.to(tl.int64) * H + columns, value, mask=columns < H)


def constants(
    tile: Tile, weight: Weight, columns: int, descriptor: bool, SLOTS: int, by_slot: bool
) -> dict[str, int | bool]:
    """Return the compile-time arguments that both products share; `columns` are those of one block."""
    return {
        "SLOTS": SLOTS,
        "BY_SLOT": by_slot,
        "BLOCK_ROWS": tile.rows,
        "BLOCK_COLUMNS": columns,
        "BLOCK_K": tile.k,
        "TRANSPOSED": weight.transposed,
        "DESCRIPTOR": descriptor,
        "WHOLE_K": weight.k % tile.k == 0,
        "INTERPRET": platform.interpreted(),
    }


def decode(
    x: Tensor,
    indices: Tensor,
    weights: Tensor,
    up: Weight,
    down: Weight,
    up_bias: Tensor | None,
    down_bias: Tensor | None,
    activation: str,
    limit: float | None,
    gated: bool,
    interleaved: bool,
    *,
    descriptors: bool | None = None,
) -> Tensor:
    """Return what `fused_experts` does, for at most `tiles.DECODE_SLOTS` slots."""
    device = platform.device_of(x)
    (T, K), E, H, I = indices.shape, up.E, x.shape[1], down.k
    N, itemsize = T * K, x.element_size()
    indices, weights, x = indices.contiguous(), weights.contiguous(), rows_of(x)
    candidates, by_slot = min(N, E), N < E
    SLOTS = max(16, triton.next_power_of_2(N))

    act = torch.empty(N, I, dtype=x.dtype, device=x.device)
    tile = tiles.decode_tile(device, itemsize, T, N, candidates, up.columns, up.transposed)
    columns = tile.columns // 2 if gated else tile.columns
    blocks = triton.cdiv(I, columns)
    descriptor = takes_descriptor(up, device) if descriptors is None else descriptors
    _decode_up_kernel[(candidates * blocks,)](
        x,
        indices,
        up.argument(tile.columns if interleaved else columns, tile.k, descriptor),
        None if up_bias is None else up_bias.contiguous(),
        act,
        N,
        E,
        H,
        I,
        blocks,
        x.stride(0),
        *up.strides,
        K=K,
        ACTIVATION=activation,
        LIMIT=limit,
        GATED=gated,
        INTERLEAVED=interleaved,
        BIAS=up_bias is not None,
        WHOLE_COLUMNS=I % columns == 0,
        **constants(tile, up, columns, descriptor, SLOTS, by_slot),
        **tile.options,
    )

    rows = torch.empty(N, H, dtype=torch.float32, device=x.device)
    tile = tiles.decode_tile(device, itemsize, T, N, candidates, H, down.transposed)
    blocks = triton.cdiv(H, tile.columns)
    descriptor = takes_descriptor(down, device) if descriptors is None else descriptors
    _decode_down_kernel[(candidates * blocks,)](
        act,
        indices,
        down.argument(tile.columns, tile.k, descriptor),
        None if down_bias is None else down_bias.contiguous(),
        rows,
        N,
        E,
        I,
        H,
        blocks,
        *down.strides,
        BIAS=down_bias is not None,
        WHOLE_COLUMNS=H % tile.columns == 0,
        **constants(tile, down, tile.columns, descriptor, SLOTS, by_slot),
        **tile.options,
    )

    out = torch.empty(T, H, dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(H, COMBINED_COLUMNS)
    _decode_combine_kernel[(T * blocks,)](
        rows,
        indices,
        weights,
        out,
        E,
        H,
        blocks,
        K=K,
        COLUMNS=COMBINED_COLUMNS,
        INTERPRET=platform.interpreted(),
    )
    return out
