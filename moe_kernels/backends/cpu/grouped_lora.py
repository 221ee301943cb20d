"""The low-rank delta of each row's group."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.cpu.arguments import result, rows, rows_or_none, weight
from moe_kernels.native import core, view, view_or_none


def _rows_last(A: Tensor) -> Tensor:
    """Return A (G, R, H) with its rows in one piece: the kernels read it in place."""
    return A if A.stride(2) == 1 else A.contiguous()


def grouped_lora_cpu(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    base: Tensor | None,
) -> Tensor:
    """Return the delta (N, O), or `base` with the delta added in place (see `moe_kernels.grouped_lora`)."""
    x, A, B = rows(x), _rows_last(A), weight(B)
    groups, scaling, ranks = rows(groups), rows(scaling), rows_or_none(ranks)
    out = result(x, (x.shape[0], B.shape[1])) if base is None else rows(base)
    core().grouped_lora(
        view(x),
        view(A),
        view(B),
        view(groups),
        view(scaling),
        view_or_none(ranks),
        None if base is None else view(out),
        view(out),
        torch.get_num_threads(),
    )
    if base is None or out is base:
        return out
    return base.copy_(out)


def grouped_lora_backward_cpu(
    grad: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    need: list[bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of x, A, B and scaling; empty where not needed."""
    grad, x, A, B = rows(grad), rows(x), _rows_last(A), weight(B)
    groups, scaling, ranks = rows(groups), rows(scaling), rows_or_none(ranks)
    grads = tuple(result(t, t.shape, needed) for t, needed in zip((x, A, B, scaling), need, strict=True))
    core().grouped_lora_backward(
        view(grad),
        view(x),
        view(A),
        view(B),
        view(groups),
        view(scaling),
        view_or_none(ranks),
        *(view(g) if needed else None for g, needed in zip(grads, need, strict=True)),
        torch.get_num_threads(),
    )
    return grads
