"""Gradients of expert weights added straight to the `.grad` that is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_depth = 0


@contextmanager
def gradients_in_place() -> Iterator[None]:
    """Let `loss.backward()` inside add the gradients of expert weights to an existing `.grad`, with no tensor between.

    Without it, autograd allocates a gradient of the weights' size and then adds it to `.grad`: for a layer of 128
    experts that is more than a gigabyte a micro-batch. A weight whose `.grad` is None gets its gradient as usual, so
    the first micro-batch after `zero_grad(set_to_none=True)` works as ever. Sums are rounded once.

    It is for `backward()` only: `torch.autograd.grad` inside would find no gradient of these weights. A weight with a
    hook is left to autograd, but hooks on its AccumulateGrad node (DistributedDataParallel) cannot be seen: do not use
    both.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def in_place_targets(*parameters: Tensor) -> list[Tensor] | None:
    """Return the `.grad` of each parameter if all of them may be added to in place now, else None."""
    if not _depth or torch.compiler.is_compiling():
        return None
    found = []
    for parameter in parameters:
        grad = parameter.grad if parameter.is_leaf else None
        hooks = parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
        if grad is None or hooks or grad.requires_grad or type(grad) not in (Tensor, torch.nn.Parameter):
            return None
        if grad.dtype != parameter.dtype or grad.shape != parameter.shape or not grad.is_contiguous():
            return None
        found.append(grad)
    return found
