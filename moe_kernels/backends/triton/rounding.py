"""float32 to a result's type, rounded to the nearest in Triton's interpreter too."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def narrow(value, kind: tl.constexpr, INTERPRET: tl.constexpr):
    """Round float32 values to `kind`. The interpreter cuts bfloat16 off instead, which would double its error."""
    if INTERPRET and kind == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
        return tl.where(value == value, nearest, value).to(kind)
    else:
        return value.to(kind)
