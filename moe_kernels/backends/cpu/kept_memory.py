"""Large results in memory that is kept between calls: fresh pages cost more than what is written into them.

A training step that drops its gradients (`zero_grad(set_to_none=True)`) gives their memory back to the system, and the
next one has it cleared again, page by page. Here the memory of a large result that nobody refers to any more is kept
for the next one: at most `MOE_KERNELS_KEPT_MIB` mebibytes, by default 2048, or an eighth of the machine's memory where
that is less. 0 keeps nothing.
"""

from __future__ import annotations

import math
import os
from functools import cache

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import result
from moe_kernels.native import core

# Below, the C library keeps freed memory by itself.
LEAST_BYTES = 16 << 20


@cache
def _keeps() -> bool:
    """Tell the native side, once, how much to keep; return whether it is anything."""
    asked = os.environ.get("MOE_KERNELS_KEPT_MIB")
    mebibytes = min(2048, _machine_bytes() >> 23) if asked is None else int(asked)
    core().set_kept_limit(max(mebibytes, 0) << 20)
    return mebibytes > 0


def _machine_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def kept_result(like: Tensor, shape: tuple[int, ...] | torch.Size, needed: bool = True) -> tuple[Tensor, bool]:
    """Allocate an output in the dtype of `like`, and tell whether its memory was in use before.

    Its contents are undefined. Empty (0,) where it is not needed.
    """
    count = math.prod(shape)
    if not needed or count * like.element_size() < LEAST_BYTES or not _keeps():
        return result(like, shape, needed), False
    block = core().KeptBlock(count * like.element_size())
    return torch.frombuffer(block, dtype=like.dtype, count=count).view(shape), block.used
