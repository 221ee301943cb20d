"""CUDA kernels from `moe_kernels._cuda`: torch-free native code that is given addresses and a stream.

The kernels compile for every supported architecture and are tested on blocks emulated by the host
(csrc/cuda/emulate), but they have not been run on a GPU: `moe_kernels.preferences` uses them only when they are asked
for by name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda import launch

# Each kernel has one tile, whose order of sums is fixed.
BATCH_INVARIANT = "always"
IMPLEMENTED = ("topk_gating", "route", "permute", "unpermute")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def supports(op: str, *tensors: Tensor) -> str | None:
    """Return None if this backend serves `op` on these tensors, else the reason."""
    problem = launch.module_problem()
    if problem is not None:
        return problem
    if op not in IMPLEMENTED:
        return f"{op} has no CUDA kernel; those that have: {', '.join(IMPLEMENTED)}"
    for tensor in tensors:
        if tensor.device.type != "cuda":
            return f"takes CUDA tensors, got one on {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"takes float32, float16 and bfloat16, got {str(tensor.dtype).removeprefix('torch.')}"
    return launch.device_problem(tensors[0].device.index) if tensors else None
