"""How tensors are brought into the form that the native core reads."""

from __future__ import annotations

import torch
from torch import Tensor


def rows(x: Tensor) -> Tensor:
    """Return x without gaps between its elements; x itself where that is so already."""
    return x if x.is_contiguous() else x.contiguous()


def matrices(w: Tensor) -> Tensor:
    """Return matrices (E, …, …) as they lie if none of them has gaps, whatever lies between them."""
    return w if w.numel() == 0 or w[0].is_contiguous() else w.contiguous()


def rows_or_none(x: Tensor | None) -> Tensor | None:
    return None if x is None else rows(x)


def weight(w: Tensor) -> Tensor:
    """Return a weight (E, …, …) as it lies if one of its last two strides is 1, else a contiguous copy."""
    return w if w.numel() == 0 or 1 in w.stride()[1:] else w.contiguous()


def result(like: Tensor, shape: tuple[int, ...] | torch.Size, needed: bool = True) -> Tensor:
    """Allocate an output in the dtype of `like`: empty (0,) where it is not needed."""
    return like.new_empty(shape if needed else (0,))


def result_float(like: Tensor, shape: tuple[int, ...] | torch.Size, needed: bool = True) -> Tensor:
    """Allocate a float32 output: empty (0,) where it is not needed."""
    return like.new_empty(shape if needed else (0,), dtype=torch.float32)


def integers(shape: tuple[int, ...], needed: bool = True) -> Tensor:
    """Allocate an int32 output: empty (0,) where it is not needed."""
    return torch.empty(shape if needed else (0,), dtype=torch.int32)
