"""Rows times a quantized weight, dequantized between the load and the product.

NF4: a block of 64 values is one step of the sum. The two halves of its bytes are the values of even and of odd k, so
that the step is two products, of the even and of the odd values of x, with the levels of the two halves; a block's
scale then multiplies its sum, and no value. int8: the row's scale multiplies the finished sum; with `DYNAMIC`, x is
int8 as well and the sum exact.

H lies along the rows of a weight, so that any columns of the result may be asked for: with a gate, those that belong
together.
"""

# Kernels annotate their compile-time arguments alone, if they have any.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from moe_kernels.backends.triton.activations import activate
from moe_kernels.backends.triton.number_formats import block_scale, int8_rounded, nf4_pairs
from moe_kernels.backends.triton.products import multiply, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks


@triton.jit
def _nf4_product(
    pointers,
    codes,
    absmax,
    nested_absmax,
    nested_code,
    offset,
    levels,
    matrix_rows,
    blocks,
    bytes,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    NESTED: tl.constexpr,
    LOOK_UP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the sums over the first `blocks` blocks of 64 values of the weight's rows (int64)."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    byte = tl.arange(0, 32)
    k = tl.arange(0, 64)
    at = codes + matrix_rows[None, :] * bytes + byte[:, None]
    first_block = matrix_rows * (bytes // 32)
    always = tl.full((BLOCK_COLUMNS,), 1, tl.int1)
    for block in tl.range(0, blocks):
        both = tl.load(pointers[:, None] + (block * 64 + k)[None, :])
        even, odd = tl.split(both.reshape(BLOCK_ROWS, 32, 2))
        first, second = nf4_pairs(tl.load(at + block * 32), levels, even.dtype, LOOK_UP)
        part = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
        part = multiply(even, first, part, INTERPRET)
        part = multiply(odd, second, part, INTERPRET)
        scale = block_scale(absmax, nested_absmax, nested_code, offset, first_block + block, always, NESTED)
        acc += part * scale[None, :]
    return acc


@triton.jit
def _int8_product(
    pointers,
    values,
    matrix_rows,
    H,
    stop,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DYNAMIC: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the unscaled sums in float32."""
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.int32 if DYNAMIC else tl.float32)
    at = values + matrix_rows[None, :] * H
    for first in tl.range(0, stop, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        if WHOLE_K:
            a = tl.load(pointers[:, None] + k[None, :])
            b = tl.load(at + k[:, None])
        else:
            a = tl.load(pointers[:, None] + k[None, :], mask=(k < H)[None, :], other=0)
            b = tl.load(at + k[:, None], mask=(k < H)[:, None], other=0)
        if DYNAMIC:
            acc = tl.dot(a, b, acc, out_dtype=tl.int32)
        else:
            # The interpreter makes no bfloat16 of an integer.
            acc = multiply(a, b.to(tl.float32 if INTERPRET else a.dtype), acc, INTERPRET)
    return acc.to(tl.float32)


@triton.jit
def quantized_product(
    pointers,
    w,
    scale,
    nested_absmax,
    nested_code,
    offset,
    levels,
    expert,
    columns,
    O,
    H,
    bytes,
    stop,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FORMAT: tl.constexpr,
    DYNAMIC: tl.constexpr,
    WHOLE_K: tl.constexpr,
    LOOK_UP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return float32 (BLOCK_ROWS, BLOCK_COLUMNS): the rows at `pointers` times the weight's `columns`.

    Columns past the end are the last one again. `bytes` is the length of a row of the weight, `stop` H, or 0 where
    there is nothing to multiply. With `DYNAMIC` the scale of the rows of x is left to the caller.
    """
    matrix_rows = expert.to(tl.int64) * O + tl.minimum(columns, O - 1)
    if FORMAT == "int8":
        acc = _int8_product(
            pointers, w, matrix_rows, H, stop, BLOCK_ROWS, BLOCK_COLUMNS, BLOCK_K, DYNAMIC, WHOLE_K, INTERPRET
        )
        return acc * tl.load(scale + matrix_rows)[None, :]
    else:
        return _nf4_product(
            pointers,
            w,
            scale,
            nested_absmax,
            nested_code,
            offset,
            levels,
            matrix_rows,
            stop // 64,
            bytes,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            FORMAT == "nf4-nested",
            LOOK_UP,
            INTERPRET,
        )


@triton.jit
def _quantized_mm_kernel(
    x,
    x_scale,
    gather,
    w,
    scale,
    nested_absmax,
    nested_code,
    offset,
    levels,
    bias,
    row_scale,
    base,
    offsets,
    out,
    E,
    N,
    H,
    O,
    bytes,
    column_blocks,
    stride_x,
    stride_out,
    stride_base,
    E_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    FORMAT: tl.constexpr,
    DYNAMIC: tl.constexpr,
    GATHER: tl.constexpr,
    BIAS: tl.constexpr,
    SCALE: tl.constexpr,
    BASE: tl.constexpr,
    TAIL: tl.constexpr,
    WHOLE_K: tl.constexpr,
    LOOK_UP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """out[n] = base + row_scale · (x[gather[n]] · Wᵀ + bias), a persistent loop over its tiles."""
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, TAIL)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, TAIL)
        columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < O
        rows, owned, pointers = row_pointers(x, gather, row, end, stride_x, BLOCK_ROWS, GATHER)
        # The rows of no expert are zero, and there is no weight to read for them.
        real = expert < E
        multiplied = rows < tl.where(real, end, 0)
        acc = quantized_product(
            pointers,
            w,
            scale,
            nested_absmax,
            nested_code,
            offset,
            levels,
            tl.minimum(expert, E - 1),
            columns,
            O,
            H,
            bytes,
            tl.where(real, H, 0),
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            FORMAT,
            DYNAMIC,
            WHOLE_K,
            LOOK_UP,
            INTERPRET,
        )
        if DYNAMIC:
            source = rows
            if GATHER:
                source = tl.load(gather + rows, mask=multiplied, other=0)
            factor = tl.load(x_scale + source, mask=multiplied, other=0.0)
            acc = acc * factor[:, None]
        if BIAS:
            added = tl.load(bias + expert.to(tl.int64) * O + columns, mask=columns < tl.where(real, O, 0), other=0.0)
            acc += added.to(tl.float32)[None, :]
        if SCALE:
            acc *= tl.load(row_scale + rows, mask=multiplied, other=0.0)[:, None]
        mask = owned[:, None] & inside[None, :]
        if BASE:
            places = rows[:, None].to(tl.int64) * stride_base + columns[None, :]
            acc += tl.load(base + places, mask=mask, other=0.0).to(tl.float32)
        places = rows[:, None].to(tl.int64) * stride_out + columns[None, :]
        tl.store(out + places, rounded(acc, out.dtype.element_ty, INTERPRET), mask=mask)


@triton.jit
def _quantized_up_kernel(
    x,
    gather,
    w,
    scale,
    nested_absmax,
    nested_code,
    offset,
    levels,
    bias,
    offsets,
    act,
    pre,
    E,
    N,
    H,
    I,
    bytes,
    column_blocks,
    stride_x,
    E_PAD: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    FORMAT: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BIAS: tl.constexpr,
    SAVE: tl.constexpr,
    WHOLE_K: tl.constexpr,
    LOOK_UP: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """The activation of the up-projection; with a gate its product comes first, then that of the other half."""
    kind = act.dtype.element_ty
    width = I * 2 if GATED else I
    ends, blocks = row_blocks(offsets, E, N, E_PAD, BLOCK_ROWS, False)
    for tile in tl.range(tl.program_id(0), blocks * column_blocks, tl.num_programs(0)):
        expert, row, end, block = locate(tile, ends, offsets, E, N, column_blocks, BLOCK_ROWS, GROUP_ROWS, False)
        columns = block * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        inside = columns < I
        rows, owned, pointers = row_pointers(x, gather, row, end, stride_x, BLOCK_ROWS, True)
        mask = owned[:, None] & inside[None, :]
        if GATED and INTERLEAVED:
            gates, ups = columns * 2, columns * 2 + 1
        else:
            gates, ups = columns, columns + I
        gate = quantized_product(
            pointers,
            w,
            scale,
            nested_absmax,
            nested_code,
            offset,
            levels,
            expert,
            gates,
            width,
            H,
            bytes,
            H,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
            BLOCK_K,
            FORMAT,
            False,
            WHOLE_K,
            LOOK_UP,
            INTERPRET,
        )
        if BIAS:
            added = tl.load(bias + expert.to(tl.int64) * width + gates, mask=inside, other=0.0)
            gate += added.to(tl.float32)[None, :]
        gate = rounded(gate, kind, INTERPRET)
        places = rows[:, None].to(tl.int64) * width
        if SAVE:
            tl.store(pre + places + gates[None, :], gate, mask=mask)
        up = gate
        if GATED:
            sums = quantized_product(
                pointers,
                w,
                scale,
                nested_absmax,
                nested_code,
                offset,
                levels,
                expert,
                ups,
                width,
                H,
                bytes,
                H,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
                BLOCK_K,
                FORMAT,
                False,
                WHOLE_K,
                LOOK_UP,
                INTERPRET,
            )
            if BIAS:
                added = tl.load(bias + expert.to(tl.int64) * width + ups, mask=inside, other=0.0)
                sums += added.to(tl.float32)[None, :]
            up = rounded(sums, kind, INTERPRET)
            if SAVE:
                tl.store(pre + places + ups[None, :], up, mask=mask)
        value = activate(gate.to(tl.float32), up.to(tl.float32), ACTIVATION, LIMIT, GATED)
        tl.store(act + rows[:, None].to(tl.int64) * I + columns[None, :], rounded(value, kind, INTERPRET), mask=mask)


@triton.jit
def _round_activation_kernel(
    pre,
    offsets,
    values,
    scale,
    E,
    I,
    COLUMNS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    LIMIT: tl.constexpr,
    GATED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
):
    """Round the activation of one row to int8: once through the row for its scale, once more for its values."""
    if tl.program_id(0) >= tl.load(offsets + E):
        return
    n = tl.program_id(0).to(tl.int64)
    width = I * 2 if GATED else I
    column = tl.arange(0, COLUMNS)
    largest = tl.zeros((COLUMNS,), tl.float32)
    poison = tl.zeros((COLUMNS,), tl.float32)
    for start in tl.range(0, I, COLUMNS):
        value = _activation(pre + n * width, start + column, I, ACTIVATION, LIMIT, GATED, INTERLEAVED)
        largest = tl.maximum(largest, tl.abs(value))
        poison += value * 0.0
    # A maximum may pass over NaN; zero times the row does not.
    factor = tl.div_rn(tl.max(largest, 0), 127.0) + tl.sum(poison, 0)
    divisor = tl.where(factor == 0, 1.0, factor)
    for start in tl.range(0, I, COLUMNS):
        value = _activation(pre + n * width, start + column, I, ACTIVATION, LIMIT, GATED, INTERLEAVED)
        at = values + n * I + start + column
        tl.store(at, int8_rounded(tl.div_rn(value, divisor)), mask=start + column < I)
    tl.store(scale + n, factor)


@triton.jit
def _activation(
    pre, columns, I, ACTIVATION: tl.constexpr, LIMIT: tl.constexpr, GATED: tl.constexpr, INTERLEAVED: tl.constexpr
):
    """Return the activation at `columns` of one row, zero from I on."""
    inside = columns < I
    if GATED and INTERLEAVED:
        gates, ups = columns * 2, columns * 2 + 1
    else:
        gates, ups = columns, columns + I
    gate = tl.load(pre + gates, mask=inside, other=0.0).to(tl.float32)
    up = gate
    if GATED:
        up = tl.load(pre + ups, mask=inside, other=0.0).to(tl.float32)
    return tl.where(inside, activate(gate, up, ACTIVATION, LIMIT, GATED), 0.0)
