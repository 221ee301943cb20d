"""What the products on tensor cores ask of their operands: 16-bit elements in rows of whole 16-byte pieces."""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
# 16-bit elements in 16 bytes.
PIECE = 8
# The place of a name is its code in csrc/cuda/activation.cuh.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss")


def operands_problem(x: Tensor, *weights: Tensor) -> str | None:
    """Return None if the kernels can read x (rows, H) and the weights (E, ., .), else the reason."""
    for tensor in (x, *weights):
        if tensor.dtype not in DTYPES:
            return f"takes float16 and bfloat16, got {str(tensor.dtype).removeprefix('torch.')}"
    if x.dim() == 2 and x.shape[1] % PIECE:
        return f"needs H divisible by {PIECE}, got x of shape {tuple(x.shape)}"
    for w in weights:
        shape, strides = tuple(w.shape), w.stride()
        if w.dim() != 3 or w.numel() == 0:
            continue
        if any(size % PIECE for size in shape[1:]):
            return f"needs both sizes of an expert's matrix divisible by {PIECE}, got a weight of shape {shape}"
        if 1 not in strides[1:]:
            return f"needs a weight whose rows or columns lie side by side, got strides {strides}"
        along, across = sorted(strides[1:])
        if across % PIECE or strides[0] % PIECE or w.data_ptr() % (2 * PIECE):
            return f"needs a weight whose rows begin at multiples of 16 bytes, got strides {strides} at {w.data_ptr()}"
    return None


def as_rows(tensor: Tensor) -> Tensor:
    """Return (rows, columns) as the kernels read it, copied only if its rows do not begin at multiples of 16 bytes."""
    # The copy engine takes no stride of 0, which an expanded gradient may have.
    aligned = (tensor.stride(0) > 0 and tensor.stride(0) % PIECE == 0) or tensor.shape[0] <= 1
    fits = tensor.stride(1) == 1 and aligned and tensor.data_ptr() % (2 * PIECE) == 0
    return tensor if fits else tensor.clone(memory_format=torch.contiguous_format)


def as_bias(bias: Tensor | None) -> Tensor | None:
    """Return (E, O) without gaps, at a multiple of 16 bytes."""
    if bias is None or (bias.is_contiguous() and bias.data_ptr() % (2 * PIECE) == 0):
        return bias
    return bias.clone(memory_format=torch.contiguous_format)


def oriented(w: Tensor, transposed: bool) -> Tensor:
    """Return the view (E, O, H) of a weight that lies as (E, O, H) or (E, H, O)."""
    return w.transpose(1, 2) if transposed else w
