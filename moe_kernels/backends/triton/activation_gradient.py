"""Back through the down-projection and the activation, in one kernel.

A row's dA′ = grad · down is the gradient of its activation before its routing weight w. From it, while it is still in
registers, come all three things that the rest of the backward needs: the gradient of the pre-activation, from w · dA′;
w · A, for the gradient of `down`; and the row sum of dA′ ∘ A, which is the gradient of w.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import autotune, platform, tiles
from moe_kernels.backends.triton.activations import activate, activate_backward
from moe_kernels.backends.triton.grouped_mm_kernels import constants, rows_of
from moe_kernels.backends.triton.products import product, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks
from moe_kernels.backends.triton.tiles import Tile
from moe_kernels.backends.triton.weights import Weight, takes_descriptor


@triton.jit
def column_halves(block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the left and the right half of a block's columns."""
    return tl.split(block.reshape(ROWS, 2, COLUMNS // 2).permute(0, 2, 1))


@triton.jit
def _through_activation(
    grad_act,
    pre,
    grad_pre,
    weighted_act,
    weight,
    rows,
    owned,
    column,
    I,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NEED_PRE: tl.constexpr,
    NEED_ACT: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Store what comes from (rows, COLUMNS) of dA′, and return the sum of dA′ ∘ A in each row."""
    kind = pre.dtype.element_ty
    BLOCK_ROWS: tl.constexpr = grad_act.shape[0]
    columns = column + tl.arange(0, COLUMNS)
    mask = owned[:, None] & (columns < I)[None, :]
    wide = rows[:, None].to(tl.int64) * (2 * I)
    pairs = 2 * column + tl.arange(0, 2 * COLUMNS)
    pair_mask = owned[:, None] & (pairs < 2 * I)[None, :]
    if GATED and INTERLEAVED:
        both = tl.load(pre + wide + pairs[None, :], mask=pair_mask, other=0.0)
        gate, up = tl.split(both.reshape(BLOCK_ROWS, COLUMNS, 2))
    elif GATED:
        gate = tl.load(pre + wide + columns[None, :], mask=mask, other=0.0)
        up = tl.load(pre + wide + I + columns[None, :], mask=mask, other=0.0)
    else:
        wide = rows[:, None].to(tl.int64) * I
        gate = tl.load(pre + wide + columns[None, :], mask=mask, other=0.0)
        up = gate
    gate, up = gate.to(tl.float32), up.to(tl.float32)
    act = activate(gate, up, ACTIVATION, LIMIT, GATED)
    # A column past the last one has a pre-activation of 0, whose activation is 0: it adds nothing.
    sums = tl.sum(grad_act * act, 1)
    if NEED_ACT:
        places = rows[:, None].to(tl.int64) * I + columns[None, :]
        tl.store(weighted_act + places, rounded(weight[:, None] * act, kind, INTERPRET), mask=mask)
    if NEED_PRE:
        grad_gate, grad_up = activate_backward(gate, up, weight[:, None] * grad_act, ACTIVATION, LIMIT, GATED)
        grad_gate, grad_up = rounded(grad_gate, kind, INTERPRET), rounded(grad_up, kind, INTERPRET)
        if GATED and INTERLEAVED:
            both = tl.join(grad_gate, grad_up).reshape(BLOCK_ROWS, 2 * COLUMNS)
            tl.store(grad_pre + wide + pairs[None, :], both, mask=pair_mask)
        else:
            tl.store(grad_pre + wide + columns[None, :], grad_gate, mask=mask)
            if GATED:
                tl.store(grad_pre + wide + I + columns[None, :], grad_up, mask=mask)
    return sums


@triton.jit
def _activation_gradient_kernel(
    grad,
    gather,
    w,
    pre,
    row_weight,
    offsets,
    grad_pre,
    weighted_act,
    row_sums,
    E,
    N,
    H,
    I,
    column_blocks,
    stride_grad,
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
    NEED_PRE: tl.constexpr,
    NEED_ACT: tl.constexpr,
    NEED_SUMS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    # The epilogue takes a quarter of the columns at a time: a whole block of gates and ups beside that of the sums
    # would spill.
    QUARTER: tl.constexpr = BLOCK_COLUMNS // 4
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, False)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, False)
        column = block * BLOCK_COLUMNS
        rows, owned, pointers = row_pointers(grad, gather, row, end, stride_grad, BLOCK_ROWS, True)
        grad_act = product(
            pointers,
            owned,
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
        weight = tl.load(row_weight + rows, mask=owned, other=0.0)
        sums = tl.zeros((BLOCK_ROWS,), tl.float32)
        left, right = column_halves(grad_act, BLOCK_ROWS, BLOCK_COLUMNS)
        for half in tl.static_range(2):
            part = left if half == 0 else right
            first, second = column_halves(part, BLOCK_ROWS, BLOCK_COLUMNS // 2)
            for quarter in tl.static_range(2):
                sums += _through_activation(
                    first if quarter == 0 else second,
                    pre,
                    grad_pre,
                    weighted_act,
                    weight,
                    rows,
                    owned,
                    column + (2 * half + quarter) * QUARTER,
                    I,
                    QUARTER,
                    ACTIVATION,
                    LIMIT,
                    GATED,
                    INTERLEAVED,
                    NEED_PRE,
                    NEED_ACT,
                    INTERPRET,
                )
        if NEED_SUMS:
            tl.store(row_sums + rows.to(tl.int64) * column_blocks + block, sums, mask=owned)


def activation_gradient(
    grad: Tensor,
    weight: Weight,
    pre: Tensor,
    row_weight: Tensor,
    offsets: Tensor,
    row_token: Tensor,
    activation: str,
    limit: float | None,
    gated: bool,
    interleaved: bool,
    need_pre: bool,
    need_act: bool,
    need_sums: bool,
    *,
    descriptors: bool | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradient of the pre-activation (N, 2I), w · A (N, I), and dA′ ∘ A summed by blocks (N, blocks).

    `weight` is the down-projection seen from its gradient: I columns of sums over H. Of each result the rows from
    offsets[E] on are undefined, and there is none where it is not needed.
    """
    device = platform.device_of(grad)
    N, (E, I) = row_token.shape[0], (weight.E, weight.columns)
    tile = tiles.activation_gradient_tile(device, grad.element_size(), N, E, interleaved)
    descriptor = takes_descriptor(weight, device) if descriptors is None else descriptors
    grad = rows_of(grad)
    grad_pre = torch.empty_like(pre) if need_pre else None
    weighted_act = torch.empty(N, I, dtype=pre.dtype, device=pre.device) if need_act else None

    def launch(tile: Tile) -> Tensor | None:
        column_blocks = triton.cdiv(I, tile.columns)
        row_sums = torch.empty(N, column_blocks, dtype=torch.float32, device=pre.device) if need_sums else None
        if N == 0:
            return row_sums
        _activation_gradient_kernel[(tiles.programs(device, tile, N, E, column_blocks),)](
            grad,
            row_token,
            weight.argument(tile.columns, tile.k, descriptor),
            pre,
            row_weight,
            offsets,
            grad_pre,
            weighted_act,
            row_sums,
            E,
            N,
            weight.k,
            I,
            column_blocks,
            grad.stride(0),
            *weight.strides,
            ACTIVATION=activation,
            LIMIT=limit,
            GATED=gated,
            INTERLEAVED=interleaved,
            NEED_PRE=need_pre,
            NEED_ACT=need_act,
            NEED_SUMS=need_sums,
            WHOLE_COLUMNS=I % tile.columns == 0,
            **constants(tile, weight, tile.columns, descriptor, triton.next_power_of_2(E + 1)),
            **tile.options,
        )
        return row_sums

    if autotune.asked_for() and N:
        form = (activation, limit, gated, interleaved, weight.transposed, need_pre, need_act)
        shape = (grad.dtype, triton.next_power_of_2(triton.cdiv(N, E)), E, weight.k, I, *form)
        others = [c for c in tiles.candidates(device, grad.element_size()) if c.columns <= 128]
        tile = autotune.fastest("activation_gradient", shape, grad.device.index, tile, others, launch)
    return grad_pre, weighted_act, launch(tile)
