"""The up-projection of an expert MLP: rows gathered in the load, the activation in the epilogue."""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import autotune, platform, tiles
from moe_kernels.backends.triton.activations import activate
from moe_kernels.backends.triton.grouped_mm_kernels import constants, rows_of
from moe_kernels.backends.triton.products import product, product_of_halves, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks
from moe_kernels.backends.triton.tiles import Tile
from moe_kernels.backends.triton.weights import Weight, takes_descriptor


@triton.jit
def activated_tile(
    pointers,
    rows,
    owned,
    w,
    bias,
    pre,
    expert,
    column,
    E,
    H,
    I,
    stride_e,
    stride_column,
    stride_k,
    kind: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return (BLOCK_ROWS, BLOCK_COLUMNS) of the activation, in type `kind`, and store its pre-activation if `SAVE`.

    With a gate that is twice as many columns of the weight: two products where gate and up are halves, one product of
    twice the width where they alternate, whose neighbours are then split. The pre-activation is rounded whether it is
    stored or not, so that the backward computes the same activation from it.
    """
    columns = column + tl.arange(0, BLOCK_COLUMNS)
    inside = columns < I
    stop = H
    biased = I
    if SAVE:
        # The pre-activation of the rows of no expert is zero, and there is no weight to read for them.
        stop = tl.where(expert < E, H, 0)
        biased = tl.where(expert < E, I, 0)
    if GATED and INTERLEAVED:
        acc = product(
            pointers,
            owned,
            w,
            expert,
            2 * column,
            2 * I,
            H,
            stop,
            stride_e,
            stride_column,
            stride_k,
            BLOCK_ROWS,
            2 * BLOCK_COLUMNS,
            BLOCK_K,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
            INTERPRET,
        )
        pairs = 2 * column + tl.arange(0, 2 * BLOCK_COLUMNS)
        if BIAS:
            added = tl.load(bias + expert.to(tl.int64) * 2 * I + pairs, mask=pairs < 2 * biased, other=0.0)
            acc += added.to(tl.float32)[None, :]
        both = rounded(acc, kind, INTERPRET)
        if SAVE:
            places = rows[:, None].to(tl.int64) * (2 * I) + pairs[None, :]
            tl.store(pre + places, both, mask=owned[:, None] & (pairs < 2 * I)[None, :])
        gate, up = tl.split(both.reshape(BLOCK_ROWS, BLOCK_COLUMNS, 2))
    elif GATED:
        gate, up = product_of_halves(
            pointers,
            owned,
            w,
            expert,
            column,
            I,
            H,
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
        if BIAS:
            places = bias + expert.to(tl.int64) * 2 * I + columns
            gate += tl.load(places, mask=columns < biased, other=0.0).to(tl.float32)[None, :]
            up += tl.load(places + I, mask=columns < biased, other=0.0).to(tl.float32)[None, :]
        gate, up = rounded(gate, kind, INTERPRET), rounded(up, kind, INTERPRET)
        if SAVE:
            places = rows[:, None].to(tl.int64) * (2 * I) + columns[None, :]
            tl.store(pre + places, gate, mask=owned[:, None] & inside[None, :])
            tl.store(pre + places + I, up, mask=owned[:, None] & inside[None, :])
    else:
        gate = product(
            pointers,
            owned,
            w,
            expert,
            column,
            I,
            H,
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
        if BIAS:
            places = bias + expert.to(tl.int64) * I + columns
            gate += tl.load(places, mask=columns < biased, other=0.0).to(tl.float32)[None, :]
        gate = rounded(gate, kind, INTERPRET)
        up = gate
        if SAVE:
            places = rows[:, None].to(tl.int64) * I + columns[None, :]
            tl.store(pre + places, gate, mask=owned[:, None] & inside[None, :])
    return rounded(activate(gate.to(tl.float32), up.to(tl.float32), ACTIVATION, LIMIT, GATED), kind, INTERPRET)


@triton.jit
def _up_projection_kernel(
    x,
    gather,
    w,
    bias,
    offsets,
    act,
    pre,
    E,
    N,
    H,
    I,
    column_blocks,
    stride_x,
    stride_e,
    stride_column,
    stride_k,
    E_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, SAVE)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, SAVE)
        rows, owned, pointers = row_pointers(x, gather, row, end, stride_x, BLOCK_ROWS, True)
        value = activated_tile(
            pointers,
            rows,
            owned,
            w,
            bias,
            pre,
            expert,
            block * BLOCK_COLUMNS,
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
            SAVE,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
            INTERPRET,
        )
        columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        places = rows[:, None].to(tl.int64) * I + columns[None, :]
        tl.store(act + places, value, mask=owned[:, None] & (columns < I)[None, :])


def up_projection(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    offsets: Tensor,
    row_token: Tensor,
    activation: str,
    limit: float | None,
    gated: bool,
    interleaved: bool,
    save: bool,
    *,
    batch_invariant: bool = False,
    descriptors: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the activation (N, I) and, with `save`, the pre-activation (N, 2I), or (N, I) without a gate.

    Rows from offsets[E] on of the pre-activation are zero, those of the activation undefined.
    """
    device = platform.device_of(x)
    N = row_token.shape[0]
    E, width = weight.E, weight.columns
    I = width // 2 if gated else width
    act = torch.empty(N, I, dtype=x.dtype, device=x.device)
    pre = torch.empty((N, width) if save else (0,), dtype=x.dtype, device=x.device)
    if N == 0:
        return act, pre
    simple = gated and not interleaved and bias is None
    tile = tiles.up_projection_tile(device, x.element_size(), N, E, simple, batch_invariant)
    descriptor = takes_descriptor(weight, device) if descriptors is None else descriptors
    x, bias = rows_of(x), None if bias is None else bias.contiguous()

    def launch(tile: Tile) -> None:
        columns = tile.columns // 2 if gated else tile.columns
        column_blocks = triton.cdiv(I, columns)
        # One block of an interleaved weight holds gate and up.
        read = tile.columns if interleaved else columns
        _up_projection_kernel[(tiles.programs(device, tile, N, E + int(save), column_blocks),)](
            x,
            row_token,
            weight.argument(read, tile.k, descriptor),
            bias,
            offsets,
            act,
            pre,
            E,
            N,
            weight.k,
            I,
            column_blocks,
            x.stride(0),
            *weight.strides,
            ACTIVATION=activation,
            LIMIT=limit,
            GATED=gated,
            INTERLEAVED=interleaved,
            BIAS=bias is not None,
            SAVE=save,
            WHOLE_COLUMNS=I % columns == 0,
            **constants(tile, weight, columns, descriptor, triton.next_power_of_2(E + 1)),
            **tile.options,
        )

    if autotune.asked_for() and not batch_invariant:
        form = (activation, limit, gated, interleaved, weight.transposed, bias is not None, save)
        shape = (x.dtype, triton.next_power_of_2(triton.cdiv(N, E)), E, weight.k, I, *form)
        others = tiles.candidates(device, x.element_size())
        tile = autotune.fastest("up_projection", shape, x.device.index, tile, others, launch)
    launch(tile)
    return act, pre
