"""Softmax, sigmoid and the order of floats, as every op defines them at infinities and NaN."""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))
LARGEST_INT32 = tl.constexpr(2**31 - 1)
# Below the order of every number.
REMOVED = tl.constexpr(-(2**63))


@triton.jit
def ordered(x):
    """Return int32 that compare as the floats do; -0 is 0, and NaN is above everything."""
    x = tl.where(x == 0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x != x, LARGEST_INT32, bits ^ ((bits >> 31) & LARGEST_INT32))


@triton.jit
def unordered(key):
    """Return the floats of `ordered`."""
    return (key ^ ((key >> 31) & LARGEST_INT32)).to(tl.float32, bitcast=True)


@triton.jit
def with_column(key, column, COLUMNS: tl.constexpr):
    """Return int64 that compare as the int32 keys, and the lower column above the higher one."""
    return (key.to(tl.int64) << 32) | (COLUMNS - 1 - column).to(tl.int64)


@triton.jit
def column_of(packed, COLUMNS: tl.constexpr):
    return COLUMNS - 1 - (packed & (COLUMNS - 1)).to(tl.int32)


@triton.jit
def sigmoid(x):
    # The exponential of a negative number: no overflow, and a small result keeps its digits.
    small = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, small) / (1.0 + small)


@triton.jit
def softmax_at(l_TE, top_T, total_T):
    """Return the softmax of some entries of rows with this maximum and this sum (see `softmax`)."""
    return _mass(l_TE, top_T) / total_T[:, None]


@triton.jit
def _mass(l_TE, top_T):
    # Entries of +inf share the whole mass of their row. NaN stays NaN.
    finite_T = tl.where(tl.abs(top_T) == INFINITY, 0.0, top_T)
    shares_TE = (top_T == INFINITY)[:, None] & (l_TE == l_TE)
    return tl.where(shares_TE, (l_TE == INFINITY).to(tl.float32), tl.exp(l_TE - finite_T[:, None]))


@triton.jit
def softmax(l_TE):
    """Return the softmax, and by row the logsumexp, whether it is broken, its maximum and its sum; padding is -inf.

    A row with a NaN, or of nothing but -inf, is broken: its softmax and logsumexp are NaN.
    """
    top_T = tl.max(l_TE, 1)
    mass_TE = _mass(l_TE, top_T)
    total_T = tl.sum(mass_TE, 1)
    # The sum is 0 for nothing but -inf, and NaN with a NaN.
    broken_T = (total_T > 0) == 0
    lse_T = tl.where(top_T == INFINITY, INFINITY, top_T + tl.log(total_T))
    p_TE = tl.where(broken_T[:, None], float("nan"), mass_TE / total_T[:, None])
    return p_TE, tl.where(broken_T, float("nan"), lse_T), broken_T, top_T, total_T


@triton.jit
def log_or_zero(p):
    """Return log p, and 0 where p is 0: what p · log p needs."""
    return tl.log(tl.where(p > 0, p, 1.0))


@triton.jit
def load_logits(logits, noise, start, i_T1, e_1E, stride, E, mask):
    """Return logits plus noise of the tokens start + i in float32; -inf outside the mask. Noise has no gaps."""
    # Within a tile 32 bits are enough: half the registers of 64-bit pointers.
    l_TE = tl.load(logits + start * stride + (i_T1 * stride + e_1E), mask=mask, other=-INFINITY).to(tl.float32)
    if noise is not None:
        l_TE += tl.load(noise + start * E + (i_T1 * E + e_1E), mask=mask, other=0.0).to(tl.float32)
    return l_TE
