"""The namespace that the ops are registered in, and what every op's file does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moe_kernels.ops.direct import direct
from moe_kernels.quantized_weights import QuantizedWeight

LIBRARY = torch.library.Library("moe_kernels", "DEF")


def define(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    shapes: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Any:
    """Define a functional op, opaque to torch.compile, and return what calls it.

    Args:
        name: the op's name in `torch.ops.moe_kernels`.
        schema: arguments and returns, in the language of PyTorch's operator schemas.
        implementation: called with real tensors on any device.
        shapes: called with fake tensors; returns empty tensors of the right shapes, dtypes and device.
        setup_context: what the backward needs (see PyTorch's `register_autograd`).
        backward: gradients of all arguments.
    """
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    qualified = f"moe_kernels::{name}"
    torch.library.register_fake(qualified, shapes, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    return direct(getattr(torch.ops.moe_kernels, name).default, implementation)


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for the gradient of any of them."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def under_autocast(*tensors: Tensor | QuantizedWeight | None) -> tuple[Tensor | QuantizedWeight | None, ...]:
    """Cast to the autocast dtype where autocast is on for the tensors' device, as torch's own matmuls do.

    Quantized weights have no dtype to cast: they are computed with in that of x.
    """
    first = next(t for t in tensors if t is not None)
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype != torch.float64 else t for t in tensors)


def weight_dtype(x: Tensor) -> torch.dtype:
    """The dtype of routing weights and statistics: float32, or float64 with float64 data."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
