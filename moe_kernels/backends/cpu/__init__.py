"""C++ kernels for CPUs."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.native import native

BATCH_INVARIANT = "always"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def supports(op: str, *tensors: Tensor) -> str | None:
    """Return None if the native core serves the call, else the reason."""
    module, reason = native()
    if module is None:
        return reason
    if op.endswith("_quantized") and not hasattr(module, "Quantized"):
        return f"the native core was built without {op}"
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"it serves CPU tensors, not {tensor.device}"
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"it has no kernels for {str(tensor.dtype).removeprefix('torch.')}"
    return None
