"""The up-projection of an expert MLP: rows gathered in the load, the activation in the epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import platform, tiles
from moe_kernels.backends.triton.activations import activate
from moe_kernels.backends.triton.grouped_mm_kernels import constants, rows_of
from moe_kernels.backends.triton.products import product, product_of_halves, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks
from moe_kernels.backends.triton.weights import Weight, takes_descriptor


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
    """One tile: (BLOCK_ROWS, BLOCK_COLUMNS) of the activation.

    With a gate that is twice as many columns of the weight: two products where gate and up are halves, one product of
    twice the width where they alternate, whose neighbours are then split.
    """
    kind = act.dtype.element_ty
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, False)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, False)
        column = block * BLOCK_COLUMNS
        columns = column + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < I
        rows, owned, pointers = row_pointers(x, gather, row, end, stride_x, BLOCK_ROWS, True)
        mask = owned[:, None] & inside[None, :]
        # Everything that is multiplied, rounded and activated below has the same bits whether it is stored or not.
        if GATED and INTERLEAVED:
            acc = product(
                pointers,
                w,
                expert,
                2 * column,
                2 * I,
                H,
                H,
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
                added = tl.load(bias + expert.to(tl.int64) * 2 * I + pairs, mask=pairs < 2 * I, other=0.0)
                acc += added.to(tl.float32)[None, :]
            both = rounded(acc, kind, INTERPRET)
            if SAVE:
                places = rows[:, None].to(tl.int64) * (2 * I) + pairs[None, :]
                tl.store(pre + places, both, mask=owned[:, None] & (pairs < 2 * I)[None, :])
            gate, up = tl.split(both.reshape(BLOCK_ROWS, BLOCK_COLUMNS, 2))
        elif GATED:
            gate, up = product_of_halves(
                pointers,
                w,
                expert,
                column,
                I,
                H,
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
                gate += tl.load(places, mask=inside, other=0.0).to(tl.float32)[None, :]
                up += tl.load(places + I, mask=inside, other=0.0).to(tl.float32)[None, :]
            gate, up = rounded(gate, kind, INTERPRET), rounded(up, kind, INTERPRET)
            if SAVE:
                places = rows[:, None].to(tl.int64) * (2 * I) + columns[None, :]
                tl.store(pre + places, gate, mask=mask)
                tl.store(pre + places + I, up, mask=mask)
        else:
            gate = product(
                pointers,
                w,
                expert,
                column,
                I,
                H,
                H,
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
                gate += tl.load(places, mask=inside, other=0.0).to(tl.float32)[None, :]
            gate = rounded(gate, kind, INTERPRET)
            up = gate
            if SAVE:
                places = rows[:, None].to(tl.int64) * I + columns[None, :]
                tl.store(pre + places, gate, mask=mask)
        value = activate(gate.to(tl.float32), up.to(tl.float32), ACTIVATION, GATED)
        tl.store(act + rows[:, None].to(tl.int64) * I + columns[None, :], rounded(value, kind, INTERPRET), mask=mask)


def up_projection(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    offsets: Tensor,
    row_token: Tensor,
    activation: str,
    gated: bool,
    interleaved: bool,
    save: bool,
    *,
    batch_invariant: bool = False,
    descriptors: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the activation (N, I) and, with `save`, the pre-activation (N, 2I), or (N, I) without a gate.

    Rows from offsets[E] on are left undefined.
    """
    device = platform.device_of(x)
    N = row_token.shape[0]
    E, width = weight.E, weight.columns
    I = width // 2 if gated else width
    act = torch.empty(N, I, dtype=x.dtype, device=x.device)
    pre = torch.empty((N, width) if save else (0,), dtype=x.dtype, device=x.device)
    if N == 0:
        return act, pre
    tile = tiles.rows_tile(device, x.element_size(), N, E, batch_invariant)
    columns = tile.columns // 2 if gated else tile.columns
    descriptor = takes_descriptor(weight, device) if descriptors is None else descriptors
    column_blocks = triton.cdiv(I, columns)
    x = rows_of(x)
    # One block of an interleaved weight holds gate and up.
    read = tile.columns if interleaved else columns
    _up_projection_kernel[(tiles.programs(device, tile, N, E, column_blocks),)](
        x,
        row_token,
        weight.argument(read, tile.k, descriptor),
        None if bias is None else bias.contiguous(),
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
        GATED=gated,
        INTERLEAVED=interleaved,
        BIAS=bias is not None,
        SAVE=save,
        WHOLE_COLUMNS=I % columns == 0,
        **constants(tile, weight, columns, descriptor, triton.next_power_of_2(E + 1)),
        **tile.options,
    )
    return act, pre
