"""CUDA kernels from `moe_kernels._cuda`: torch-free native code that is given addresses and a stream.

The kernels compile for every supported architecture and are tested on blocks emulated by the host
(csrc/cuda/emulate), but they have not been run on a GPU: `moe_kernels.preferences` uses them only when they are asked
for by name.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cuda import launch
from moe_kernels.backends.cuda.operands import operands_problem

# Every element of a product is summed in the same order by the same instruction, whatever the tile.
BATCH_INVARIANT = "always"
IMPLEMENTED = ("topk_gating", "route", "permute", "unpermute", "grouped_mm", "fused_experts", "grouped_lora")
# The products on tensor cores; their tensors are x and the weights.
PRODUCTS = ("grouped_mm", "fused_experts", "grouped_lora")
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
    if op in PRODUCTS and tensors:
        problem = operands_problem(*tensors)
        if problem is not None:
            return problem
    return launch.device_problem(tensors[0].device.index) if tensors else None
