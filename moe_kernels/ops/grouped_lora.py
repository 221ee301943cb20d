"""grouped_lora: the low-rank delta of each row's group."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from moe_kernels import validation
from moe_kernels.ops.direct import nobody_listens
from moe_kernels.ops.registration import define, needs_grad, under_autocast, weight_dtype
from moe_kernels.registry import kernel


def _run(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    backend: str | None,
    batch_invariant: bool | None,
) -> Tensor:
    return kernel("grouped_lora", backend, x, A, B, batch_invariant=batch_invariant)(
        x, A, B, groups, scaling, ranks, None
    )


def _run_in_place(
    base: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    backend: str | None,
    batch_invariant: bool | None,
) -> None:
    kernel("grouped_lora", backend, x, A, B, batch_invariant=batch_invariant)(x, A, B, groups, scaling, ranks, base)
    # Native code writes past torch: without this, autograd would not see that a saved base has changed.
    torch.autograd.graph.increment_version(base)


def _run_backward(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    need: list[bool],
    backend: str | None,
) -> tuple[Tensor, ...]:
    call = kernel("grouped_lora", backend, x, A, B, backward=True)
    return call(grad, x, A, B, groups, scaling, ranks, need)


def _backward_shapes(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    need: list[bool],
    *_: Any,
) -> tuple[Tensor, ...]:
    like = (x, A, B, scaling)
    return tuple(t.new_empty(t.shape if needed else (0,)) for t, needed in zip(like, need, strict=True))


_backward_op = define(
    "grouped_lora_backward",
    "(Tensor grad, Tensor x, Tensor A, Tensor B, Tensor groups, Tensor scaling, Tensor? ranks, bool[] need, "
    "str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _run_backward,
    _backward_shapes,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    need = [ctx.needs_input_grad[i] for i in (0, 1, 2, 4)]
    grads = _backward_op(grad, *ctx.saved_tensors, need, ctx.backend)
    gx, gA, gB, gs = (g if needed else None for g, needed in zip(grads, need, strict=True))
    return gx, gA, gB, None, gs, None, None, None


_op = define(
    "grouped_lora",
    "(Tensor x, Tensor A, Tensor B, Tensor groups, Tensor scaling, Tensor? ranks, str? backend, "
    "bool? batch_invariant) -> Tensor",
    _run,
    lambda x, A, B, *_: x.new_empty(x.shape[0], B.shape[1]),
    setup_context=_setup_context,
    backward=_backward,
)

_in_place_op = define(
    "grouped_lora_",
    "(Tensor(a!) base, Tensor x, Tensor A, Tensor B, Tensor groups, Tensor scaling, Tensor? ranks, str? backend, "
    "bool? batch_invariant) -> ()",
    _run_in_place,
    lambda *_: None,
)


@lru_cache(maxsize=256)
def _factors(scaling: float, groups: int, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((groups,), scaling, dtype=dtype, device="cpu")


def _as_tensor(scaling: Tensor | float, x: Tensor, A: Tensor) -> Tensor:
    if isinstance(scaling, Tensor):
        return scaling.to(weight_dtype(x))
    # The same few numbers come again in every call, and nothing writes to them.
    if x.is_cpu and not torch.compiler.is_compiling() and nobody_listens():
        return _factors(float(scaling), A.shape[0], weight_dtype(x))
    return torch.full(A.shape[:1], scaling, dtype=weight_dtype(x), device=x.device)


def grouped_lora(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor | float = 1.0,
    *,
    ranks: Tensor | None = None,
    batch_invariant: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Apply each row's adapter: y[n] = scaling[g] · (x[n] · A[g]ᵀ) · B[g]ᵀ for g = groups[n] (LoRA, arXiv:2106.09685).

    Args:
        x: (N, H) rows in any order.
        A: (G, R, H), x's dtype; one group for each adapter, each expert, or each pair as adapter · E + expert.
        B: (G, O, R), x's dtype.
        groups: (N) int32 or int64; a group of G or more is a sentinel: no delta.
        scaling: (G) float32, or one factor for all.
        ranks: (G) int32 at most R; only the first ranks[g] rows of A[g] and columns of B[g] count. The rest is padding
            that may hold anything; its gradient is zero.
        batch_invariant: a row's bits must not depend on the other rows. The CPU's kernels always are so; the GPU's then
            use one tile for every number of rows. None: as the environment variable `MOE_KERNELS_BATCH_INVARIANT` says.
        backend: a backend's name that must serve the call.

    Returns:
        (N, O) in x's dtype. The product with A stays in float32.

    Raises:
        ValueError, TypeError: an argument does not fit, or a group is negative (seen on CPU tensors in eager mode).
    """
    x, A, B = under_autocast(x, A, B)  # type: ignore[assignment]
    validation.check_grouped_lora(x, A, B, groups, scaling, ranks)
    scaling = _as_tensor(scaling, x, A)
    return _op(x, A, B, groups, scaling, ranks, backend, batch_invariant)


def grouped_lora_(
    base: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor | float = 1.0,
    *,
    ranks: Tensor | None = None,
    batch_invariant: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Add `grouped_lora` to `base` in place, rounded once; for inference: it has no gradient.

    Args:
        base: (N, O), x's dtype: the result of the layer that the adapters belong to.
        x, A, B, groups, scaling, ranks, batch_invariant, backend: see `grouped_lora`.

    Returns:
        base.

    Raises:
        ValueError, TypeError: an argument does not fit, or autograd would need a gradient through this call.
    """
    x, A, B = under_autocast(x, A, B)  # type: ignore[assignment]
    validation.check_grouped_lora(x, A, B, groups, scaling, ranks, base)
    if needs_grad(base, x, A, B, scaling if isinstance(scaling, Tensor) else None):
        wanted = "tensors without requires_grad (grouped_lora has a gradient), or torch.no_grad()"
        validation.fail("grouped_lora_", "base, x, A, B, scaling", wanted, "one that requires grad")
    scaling = _as_tensor(scaling, x, A)
    _in_place_op(base, x, A, B, groups, scaling, ranks, backend, batch_invariant)
    return base
