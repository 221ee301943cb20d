"""The product of a block of rows with a block of an expert's weight: device functions.

A weight is a stack of matrices, seen as (E, columns, K), with K the length of the sums. `TRANSPOSED` says how it lies:
the columns of one k are neighbours in memory, not the k of one column. It comes as a pointer with three strides, or,
with `DESCRIPTOR`, as a tensor descriptor of three dimensions, whose blocks the copy engine fetches. Three, so that a
block that sticks out of its expert is zero there, instead of showing the next expert.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def multiply(a, b, acc, INTERPRET: tl.constexpr):
    """Add a·b in float32. Float32 is multiplied as float32; the interpreter has no product of bfloat16."""
    if INTERPRET:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(value, kind: tl.constexpr, INTERPRET: tl.constexpr):
    """Return float32 values in another type, rounded to nearest; the interpreter would cut bfloat16 off."""
    if INTERPRET and kind == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        # A NaN of all ones would become zero here; none comes out of arithmetic.
        bits += 0x7FFF + ((bits >> 16) & 1)
        # What is left below would be a subnormal number where the value is zero, which the interpreter takes for 2⁻¹²⁶.
        bits &= -65536
        value = bits.to(tl.float32, bitcast=True)
    return value.to(kind)


@triton.jit
def weight_block(
    w,
    expert,
    column,
    k,
    end_column,
    end_k,
    stride_e,
    stride_column,
    stride_k,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
):
    """Return (BLOCK_K, BLOCK_COLUMNS) of an expert's weight, zero where it ends.

    `WHOLE_COLUMNS`, `WHOLE_K`: the weight's sizes are multiples of the blocks, so that nothing needs a mask.
    """
    if DESCRIPTOR:
        if TRANSPOSED:
            block = w.load([expert, k, column]).reshape(BLOCK_K, BLOCK_COLUMNS)
        else:
            block = w.load([expert, column, k]).reshape(BLOCK_COLUMNS, BLOCK_K).T
    else:
        columns = column + tl.arange(0, BLOCK_COLUMNS)
        ks = k + tl.arange(0, BLOCK_K)
        start = w + expert.to(tl.int64) * stride_e
        pointers = start + (ks[:, None].to(tl.int64) * stride_k + columns[None, :].to(tl.int64) * stride_column)
        if WHOLE_COLUMNS and WHOLE_K:
            block = tl.load(pointers)
        elif WHOLE_K:
            block = tl.load(pointers, mask=(columns < end_column)[None, :], other=0.0)
        elif WHOLE_COLUMNS:
            block = tl.load(pointers, mask=(ks < end_k)[:, None], other=0.0)
        else:
            block = tl.load(pointers, mask=(ks < end_k)[:, None] & (columns < end_column)[None, :], other=0.0)
    return block


@triton.jit
def row_pointers(x, gather, row, end, stride_row, BLOCK_ROWS: tl.constexpr, GATHER: tl.constexpr):
    """Return the rows (BLOCK_ROWS), which of them are this expert's, and pointers to the first element of each.

    Past the end the pointers are those of the last row: what it gives is not stored, and large tiles load it unmasked.
    """
    rows = row + tl.arange(0, BLOCK_ROWS)
    owned = rows < end
    source = tl.minimum(rows, end - 1)
    if GATHER:
        source = tl.load(gather + source)
    return rows, owned, x + source.to(tl.int64) * stride_row


@triton.jit
def x_block(pointers, owned, k, end_k, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr, WHOLE_K: tl.constexpr):
    """Return (BLOCK_ROWS, BLOCK_K) of the rows at `pointers`, zero from `end_k` on.

    In a small tile most rows may be nobody's: a mask keeps their bytes from being fetched, which would be as many as
    the weight's.
    """
    ks = k + tl.arange(0, BLOCK_K)
    places = pointers[:, None] + ks[None, :]
    if BLOCK_ROWS <= 32:
        block = tl.load(places, mask=owned[:, None] & (ks < end_k)[None, :], other=0.0)
    elif WHOLE_K:
        block = tl.load(places)
    else:
        block = tl.load(places, mask=(ks < end_k)[None, :], other=0.0)
    return block


@triton.jit
def product(
    pointers,
    owned,
    w,
    expert,
    column,
    end_column,
    K_SIZE,
    stop,
    stride_e,
    stride_column,
    stride_k,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return float32 (BLOCK_ROWS, BLOCK_COLUMNS): the rows at `pointers` times the weight's columns.

    `stop` is `K_SIZE`, or 0 where there is nothing to multiply.
    """
    acc = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for k in tl.range(0, stop, BLOCK_K):
        a = x_block(pointers, owned, k, K_SIZE, BLOCK_ROWS, BLOCK_K, WHOLE_K)
        b = weight_block(
            w,
            expert,
            column,
            k,
            end_column,
            K_SIZE,
            stride_e,
            stride_column,
            stride_k,
            BLOCK_COLUMNS,
            BLOCK_K,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
        )
        acc = multiply(a, b, acc, INTERPRET)
    return acc


@triton.jit
def product_of_halves(
    pointers,
    owned,
    w,
    expert,
    column,
    half,
    K_SIZE,
    stop,
    stride_e,
    stride_column,
    stride_k,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTOR: tl.constexpr,
    WHOLE_COLUMNS: tl.constexpr,
    WHOLE_K: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """Return the products with the columns from `column` and with those from `half + column`, of a weight with 2·half.

    Columns past their half are not defined: with a descriptor those of the first are the second's.
    """
    gate = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    up = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for k in tl.range(0, stop, BLOCK_K):
        a = x_block(pointers, owned, k, K_SIZE, BLOCK_ROWS, BLOCK_K, WHOLE_K)
        b = weight_block(
            w,
            expert,
            column,
            k,
            half,
            K_SIZE,
            stride_e,
            stride_column,
            stride_k,
            BLOCK_COLUMNS,
            BLOCK_K,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
        )
        gate = multiply(a, b, gate, INTERPRET)
        b = weight_block(
            w,
            expert,
            half + column,
            k,
            2 * half,
            K_SIZE,
            stride_e,
            stride_column,
            stride_k,
            BLOCK_COLUMNS,
            BLOCK_K,
            TRANSPOSED,
            DESCRIPTOR,
            WHOLE_COLUMNS,
            WHOLE_K,
        )
        up = multiply(a, b, up, INTERPRET)
    return gate, up
