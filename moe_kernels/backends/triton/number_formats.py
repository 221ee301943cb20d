"""Device functions of the quantized formats: NF4's levels and scales, rounding to int8.

Letters as in `moe_kernels.number_formats`: O rows of a matrix, H values a row, B blocks.
"""

# Kernels annotate their compile-time arguments alone, if they have any.
# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels import number_formats

NESTED_BLOCK = tl.constexpr(number_formats.NESTED_BLOCK)
# Adding and taking away 1.5 · 2²³ rounds a float32 below 2²² in magnitude to the nearest integer, ties to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def block_scale(absmax, nested_absmax, nested_code, offset, block, mask, NESTED: tl.constexpr):
    """Load the float32 scales of the blocks numbered `block` (int64) in the whole stack."""
    if NESTED:
        level = tl.load(nested_code + tl.load(absmax + block, mask=mask, other=0).to(tl.int32))
        return level * tl.load(nested_absmax + block // NESTED_BLOCK, mask=mask, other=0.0) + tl.load(offset)
    else:
        return tl.load(absmax + block, mask=mask, other=0.0)


@triton.jit
def nf4_levels(code):
    """The float32 levels of codes 0 to 15: a tree of selections by the bits, lowest first."""
    one, two = (code & 1) != 0, (code & 2) != 0
    a = tl.where(one, -0.6961928009986877, -1.0)
    b = tl.where(one, -0.39491748809814453, -0.5250730514526367)
    c = tl.where(one, -0.18477343022823334, -0.28444138169288635)
    d = tl.where(one, 0.0, -0.09105003625154495)
    low = tl.where((code & 4) != 0, tl.where(two, d, c), tl.where(two, b, a))
    a = tl.where(one, 0.16093020141124725, 0.07958029955625534)
    b = tl.where(one, 0.33791524171829224, 0.24611230194568634)
    c = tl.where(one, 0.5626170039176941, 0.44070982933044434)
    d = tl.where(one, 1.0, 0.7229568362236023)
    high = tl.where((code & 4) != 0, tl.where(two, d, c), tl.where(two, b, a))
    return tl.where((code & 8) != 0, high, low)


def look_up_asm(dtype: torch.dtype) -> str:
    """Return PTX that turns four bytes ($4) into the levels of their high nibbles ($0, $1) and low ones ($2, $3).

    A byte permutation looks four nibbles up at once in eight bytes: one for codes below 8 and one for those above give
    the levels' low bytes, two more their high bytes, and others choose by a nibble's highest bit and put the bytes
    together. 2.8 instructions a value, none of them a load: so the look-up can follow the layout of the product's
    operand, which the load of a table's entries cannot.
    """
    bits = torch.tensor(number_formats.NF4_LEVELS).to(dtype).view(torch.int16).tolist()
    planes = [[(b >> shift) & 0xFF for b in bits] for shift in (0, 8)]
    words = [sum(plane[4 * i + j] << 8 * j for j in range(4)) for plane in planes for i in range(4)]
    tables = " ".join(f"mov.b32 t{i}, {word:#010x};" for i, word in enumerate(words))
    half = "prmt.b32 a, t0, t1, s; prmt.b32 b, t2, t3, s; prmt.b32 a, a, b, u; "
    half += "prmt.b32 b, t4, t5, s; prmt.b32 c, t6, t7, s; prmt.b32 b, b, c, u; "
    return (
        "{ .reg .b32 s, u, a, b, c, t0, t1, t2, t3, t4, t5, t6, t7; "
        + tables
        + " and.b32 s, $4, 0x77777777; shr.u32 u, $4, 1; and.b32 u, u, 0x44444444; or.b32 u, u, 0x32103210; "
        + half
        + "prmt.b32 $0, a, b, 0x7351; prmt.b32 $2, a, b, 0x6240; shr.u32 s, s, 16; shr.u32 u, u, 16; "
        + half
        + "prmt.b32 $1, a, b, 0x7351; prmt.b32 $3, a, b, 0x6240; }"
    )


LOOK_UP_BF16 = tl.constexpr(look_up_asm(torch.bfloat16))
LOOK_UP_FP16 = tl.constexpr(look_up_asm(torch.float16))


@triton.jit
def nf4_pairs(code, levels, kind: tl.constexpr, LOOK_UP: tl.constexpr):
    """The levels of the high and of the low nibbles of bytes, as `kind`.

    Args:
        code: uint8.
        levels: the table in memory.
        LOOK_UP: "permute" for NVIDIA's byte permutation (16-bit kinds), "select" for a tree of selections, "table" for
            `levels`.
    """
    if LOOK_UP == "permute" and kind == tl.bfloat16:
        first, second = tl.inline_asm_elementwise(
            LOOK_UP_BF16, "=r,=r,=r,=r,r", [code], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    elif LOOK_UP == "permute":
        tl.static_assert(kind == tl.float16)
        first, second = tl.inline_asm_elementwise(
            LOOK_UP_FP16, "=r,=r,=r,=r,r", [code], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    elif LOOK_UP == "select":
        index = code.to(tl.int32)
        first, second = nf4_levels(index >> 4).to(kind), nf4_levels(index & 15).to(kind)
    else:
        index = code.to(tl.int32)
        first, second = tl.load(levels + (index >> 4)), tl.load(levels + (index & 15))
    return first, second


@triton.jit
def int8_rounded(value):
    """Round float32 values of at most 127 in magnitude to int8, ties to even."""
    return tl.minimum(tl.maximum((value + ROUNDER) - ROUNDER, -127.0), 127.0).to(tl.int8)


@triton.jit
def _levels_kernel(levels):
    code = tl.arange(0, 16)
    tl.store(levels + code, nf4_levels(code).to(levels.dtype.element_ty))


_levels: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def levels_on(device: torch.device, dtype: torch.dtype) -> Tensor:
    """NF4's levels (16) on a device; kept for the next call.

    The kernels look levels up in memory: 16 of them lie in one cache line, so that the load of a warp is one access,
    where the tree of selections takes 15 instructions. A kernel writes them, since nothing can be copied from the host
    while a CUDA graph is being captured. What is made during a capture has its values only when the graph runs, and is
    not kept.
    """
    if (device, dtype) in _levels:
        return _levels[device, dtype]
    with torch.inference_mode(False):
        made = torch.empty(16, dtype=dtype, device=device)
    _levels_kernel[(1,)](made, num_warps=1)
    if not (made.is_cuda and torch.cuda.is_current_stream_capturing()):
        _levels[device, dtype] = made
    return made
