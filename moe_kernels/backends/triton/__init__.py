"""Triton kernels for NVIDIA and AMD GPUs.

With `TRITON_INTERPRET=1` in the environment they run on CPU tensors, step by step in Python: that is how they are
tested where there is no GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.triton import platform

# Tiles are chosen by the number of rows; on request one is used for all of them.
BATCH_INVARIANT = "on request"
IMPLEMENTED: tuple[str, ...] = ("topk_gating", "route", "permute", "unpermute")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def supports(op: str, *tensors: Tensor) -> str | None:
    """Return None if this backend serves `op` on these tensors, else the reason."""
    problem = platform.problem()
    if problem is not None:
        return problem
    if op not in IMPLEMENTED:
        return f"{op} has no Triton kernel; those that have: {', '.join(IMPLEMENTED)}"
    for tensor in tensors:
        if not tensor.is_cuda and not platform.interpreted():
            return f"takes GPU tensors, got one on {tensor.device} (TRITON_INTERPRET=1 runs them on the CPU, slowly)"
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"takes float32, float16 and bfloat16, got {str(tensor.dtype).removeprefix('torch.')}"
    return None
