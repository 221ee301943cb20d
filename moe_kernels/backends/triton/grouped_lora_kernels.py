"""The products of `grouped_lora`: onto the rank (shrink), back from it (expand), over a group's rows (outer).

The rows of x stay where they are; a plan over the groups says which of them a block takes. What lies between two
products, h (SPLITS, N, R), is float32, in the plan's order of rows, and cut along H into `SPLITS` sums that are added
where they are read: so a few rows keep more than a few processors busy, and the order of the sums is fixed.
Columns of h from a group's rank on are never read.

Letters: N rows, G groups, R rank, C columns (H or O).
"""

# Kernels annotate their compile-time arguments alone, if they have any.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from moe_kernels.backends.triton.products import multiply, rounded, row_pointers
from moe_kernels.backends.triton.schedule import locate, row_blocks


@triton.jit
def multiply_apart(a, b, acc, INTERPRET: tl.constexpr):
    """Add a·b, with a product in float32 summed from zero first: stretches err less than one chain over all terms.

    The limit on what is summed imprecisely keeps the compiler from turning the two into one chain again.
    """
    if INTERPRET or a.dtype != tl.float32:
        return multiply(a, b, acc, INTERPRET)
    else:
        return acc + tl.dot(a, b, input_precision="ieee", max_num_imprecise_acc=a.shape[1])


@triton.jit
def multiply_wide(a, b, acc, INTERPRET: tl.constexpr):
    """Add a·b, with `a` in float32 and `b` in its own type; a 16-bit `b` meets `a` in two parts of its type.

    float16 has too few exponents for that: each row of `a` is divided by its largest magnitude first. What is infinite
    has no second part.
    """
    kind: tl.constexpr = b.dtype
    if kind == tl.float32:
        return multiply_apart(a, b, acc, INTERPRET)
    elif kind == tl.float16:
        size = tl.max(tl.abs(a), 1)
        size = tl.where((size == 0) | (size == float("inf")), 1.0, size)[:, None]
        unit = a / size
        high = unit.to(kind)
        low = tl.where(tl.abs(a) == float("inf"), 0.0, unit - high.to(tl.float32)).to(kind)
        part = multiply(low, b, tl.zeros(acc.shape, tl.float32), INTERPRET)
        return acc + multiply(high, b, part, INTERPRET) * size
    else:
        high = a.to(kind)
        low = tl.where(tl.abs(a) == float("inf"), 0.0, a - high.to(tl.float32)).to(kind)
        acc = multiply(low, b, acc, INTERPRET)
        return multiply(high, b, acc, INTERPRET)


@triton.jit
def load_h(h, rows, owned, r, rank, N, R, SPLITS: tl.constexpr):
    """Return h (rows, r) summed over its splits, zero outside."""
    mask = owned[:, None] & (r < rank)[None, :]
    total = tl.zeros(mask.shape, tl.float32)
    for split in tl.static_range(SPLITS):
        row_of_all = rows.to(tl.int64) + split * N
        total += tl.load(h + row_of_all[:, None] * R + r[None, :], mask=mask, other=0.0)
    return total


@triton.jit
def rank_of(ranks, group, R, MIXED: tl.constexpr):
    if MIXED:
        return tl.load(ranks + group)
    else:
        return R


@triton.jit
def _shrink_kernel(
    x,
    A,
    offsets,
    row_token,
    ranks,
    h,
    N,
    G,
    H,
    R,
    split_H,
    x_row,
    x_column,
    A_group,
    A_rank,
    A_column,
    MIXED: tl.constexpr,
    G_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """h[split, n, r] = Σ x[row_token[n], k] · A[g, r, k] over the k of the split."""
    ends, tiles = row_blocks(offsets, G, N, G_PAD, BLOCK_N, False)
    if tl.program_id(0) >= tiles:
        return
    group, row, end, _ = locate(tl.program_id(0), ends, offsets, G, N, 1, BLOCK_N, 1, False)
    first = tl.program_id(1) * BLOCK_R
    rank = rank_of(ranks, group, R, MIXED)
    if first >= rank:
        return
    r = first + tl.arange(0, BLOCK_R)
    rows, owned, x_rows = row_pointers(x, row_token, row, end, x_row, BLOCK_N, True)
    A_columns = A + group.to(tl.int64) * A_group + r.to(tl.int64)[None, :] * A_rank
    split = tl.program_id(2)
    start = split * split_H
    acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for k in tl.range(start, tl.minimum(start + split_H, H), BLOCK_H):
        ks = k + tl.arange(0, BLOCK_H)
        inside = ks < H
        a = tl.load(x_rows[:, None] + ks.to(tl.int64)[None, :] * x_column, mask=inside[None, :], other=0.0)
        mask = inside[:, None] & (r < rank)[None, :]
        b = tl.load(A_columns + ks.to(tl.int64)[:, None] * A_column, mask=mask, other=0.0)
        acc = multiply_apart(a, b, acc, INTERPRET)
    row_of_all = split.to(tl.int64) * N + rows
    tl.store(h + row_of_all[:, None] * R + r[None, :], acc, mask=owned[:, None] & (r < rank)[None, :])


@triton.jit
def _expand_kernel(
    h,
    B,
    offsets,
    row_token,
    slot_row,
    scaling,
    ranks,
    base,
    out,
    N,
    G,
    C,
    R,
    tiles_most,
    B_group,
    B_column,
    B_rank,
    base_row,
    base_column,
    out_row,
    out_column,
    MIXED: tl.constexpr,
    BASE: tl.constexpr,
    SPLITS: tl.constexpr,
    G_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """out[row_token[n], c] = base + scaling[g] · Σ h[n, r] · B[g, c, r], in one rounding.

    Without a base, the programs from `tiles_most` on write the zeros of rows that have no group.
    """
    kind: tl.constexpr = out.dtype.element_ty
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    out_columns = out + c.to(tl.int64)[None, :] * out_column
    if tl.program_id(0) >= tiles_most:
        n = (tl.program_id(0) - tiles_most) * BLOCK_N + tl.arange(0, BLOCK_N)
        alone = (n < N) & (tl.load(slot_row + n, mask=n < N, other=0) < 0)
        zeros = tl.zeros((BLOCK_N, BLOCK_C), tl.float32).to(kind)
        tl.store(out_columns + n.to(tl.int64)[:, None] * out_row, zeros, mask=alone[:, None] & (c < C)[None, :])
        return
    ends, tiles = row_blocks(offsets, G, N, G_PAD, BLOCK_N, False)
    if tl.program_id(0) >= tiles:
        return
    group, row, end, _ = locate(tl.program_id(0), ends, offsets, G, N, 1, BLOCK_N, 1, False)
    rank = rank_of(ranks, group, R, MIXED)
    rows = row + tl.arange(0, BLOCK_N)
    owned = rows < end
    B_columns = B + group.to(tl.int64) * B_group + c.to(tl.int64)[None, :] * B_column
    acc = tl.zeros((BLOCK_N, BLOCK_C), tl.float32)
    for first in tl.range(0, rank, BLOCK_R):
        r = first + tl.arange(0, BLOCK_R)
        a = load_h(h, rows, owned, r, rank, N, R, SPLITS)
        mask = (r < rank)[:, None] & (c < C)[None, :]
        b = tl.load(B_columns + r.to(tl.int64)[:, None] * B_rank, mask=mask, other=0.0)
        acc = multiply_wide(a, b, acc, INTERPRET)
    acc = acc * tl.load(scaling + group)
    token = tl.load(row_token + rows, mask=owned, other=0).to(tl.int64)[:, None]
    mask = owned[:, None] & (c < C)[None, :]
    if BASE:
        acc += tl.load(base + token * base_row + c.to(tl.int64)[None, :] * base_column, mask=mask, other=0.0).to(
            tl.float32
        )
    tl.store(out_columns + token * out_row, rounded(acc, kind, INTERPRET), mask=mask)


@triton.jit
def _outer_kernel(
    h,
    y,
    offsets,
    row_token,
    scaling,
    ranks,
    out,
    N,
    C,
    R,
    y_row,
    y_column,
    out_group,
    out_rank,
    out_column,
    MIXED: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    INTERPRET: tl.constexpr,
):
    """out[g, r, c] = scaling[g] · Σ h[n, r] · y[row_token[n], c] over the rows of g; zero from the rank on."""
    group = tl.program_id(2)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    rank = rank_of(ranks, group, R, MIXED)
    start = tl.load(offsets + group)
    end = tl.load(offsets + group + 1)
    y_columns = y + c.to(tl.int64)[None, :] * y_column
    acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for row in tl.range(start, end, BLOCK_N):
        rows = row + tl.arange(0, BLOCK_N)
        owned = rows < end
        a = load_h(h, rows, owned, r, rank, N, R, SPLITS)
        token = tl.load(row_token + rows, mask=owned, other=0).to(tl.int64)[:, None]
        b = tl.load(y_columns + token * y_row, mask=owned[:, None] & (c < C)[None, :], other=0.0)
        acc = multiply_wide(tl.trans(a), b, acc, INTERPRET)
    acc = tl.where((r < rank)[:, None], acc * tl.load(scaling + group), 0.0)
    at = group.to(tl.int64) * out_group + r.to(tl.int64)[:, None] * out_rank + c.to(tl.int64)[None, :] * out_column
    tl.store(out + at, rounded(acc, out.dtype.element_ty, INTERPRET), mask=(r < R)[:, None] & (c < C)[None, :])


@triton.jit
def _scaling_gradient_kernel(
    h,
    dh,
    offsets,
    ranks,
    out,
    N,
    R,
    MIXED: tl.constexpr,
    SPLITS: tl.constexpr,
    GRAD_SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out[g] = Σ h[n, r] · dh[n, r] over the rows of g."""
    group = tl.program_id(0)
    rank = rank_of(ranks, group, R, MIXED)
    end = tl.load(offsets + group + 1)
    acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
    for row in tl.range(tl.load(offsets + group), end, BLOCK_N):
        rows = row + tl.arange(0, BLOCK_N)
        for first in tl.range(0, rank, BLOCK_R):
            r = first + tl.arange(0, BLOCK_R)
            a = load_h(h, rows, rows < end, r, rank, N, R, SPLITS)
            acc += a * load_h(dh, rows, rows < end, r, rank, N, R, GRAD_SPLITS)
    tl.store(out + group, tl.sum(tl.sum(acc, 1), 0))
