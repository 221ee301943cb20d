"""The low-rank delta of each row's group, on CUDA: two products over the rows, sorted by group.

What lies between them is float32 and goes into the second product as two 16-bit numbers, so that it keeps twice the
digits of one.

Letters: N rows, G groups, R the largest rank, H and O the widths of x and of the delta.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from moe_kernels.backends.cuda.products import outer_products, rows_times_weights
from moe_kernels.backends.cuda.route import route_cuda
from moe_kernels.backends.cuda.unpermute import unpermute_cuda


class _Groups(NamedTuple):
    """The rows by group: the plan of `route` with one choice a row, and each sorted row's factor.

    `kept` (G, R) is False in the padding of smaller ranks, None where all are R.
    """

    offsets: Tensor
    row_token: Tensor
    slot_row: Tensor
    scale: Tensor
    kept: Tensor | None


def _groups(groups: Tensor, scaling: Tensor, ranks: Tensor | None, R: int) -> _Groups:
    G = scaling.shape[0]
    offsets, row_token, slot_row = route_cuda(groups[:, None], G)
    sorted_N = torch.arange(groups.shape[0], device=groups.device, dtype=offsets.dtype)
    owner_N = torch.searchsorted(offsets[1:], sorted_N, right=True).clamp(max=G - 1)
    kept = None if ranks is None else torch.arange(R, device=ranks.device) < ranks[:, None]
    return _Groups(offsets, row_token, slot_row, scaling[owner_N], kept)


def _without_padding(A: Tensor, B: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    if kept is None:
        return A, B
    return torch.where(kept[:, :, None], A, 0), torch.where(kept[:, None, :], B, 0)


def _twice(w: Tensor) -> Tensor:
    """Return a weight (G, O, R) with its columns twice (G, O, 2R), for rows in two parts."""
    return torch.cat([w, w], dim=2)


def _two_parts(h_NR: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (N, 2R): float32 rounded to `dtype`, and beside it what that took away."""
    first = h_NR.to(dtype)
    # What is not finite is all in the first part.
    rest = torch.where(first.isfinite(), h_NR - first, 0)
    return torch.cat([first, rest.to(dtype)], dim=1)


def grouped_lora_cuda(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    groups: Tensor,
    scaling: Tensor,
    ranks: Tensor | None,
    base: Tensor | None,
) -> Tensor:
    """Return the delta (N, O), or `base` with the delta added in place (see `moe_kernels.grouped_lora`)."""
    if x.shape[0] == 0 or B.shape[1] == 0:
        return x.new_empty(x.shape[0], B.shape[1]) if base is None else base
    plan = _groups(groups, scaling, ranks, A.shape[1])
    A, B = _without_padding(A, B, plan.kept)
    h_NR = rows_times_weights(x, A, plan.offsets, plan.row_token, None, plan.scale, torch.float32)
    # Onto a base the delta is added before it is rounded.
    dtype = x.dtype if base is None else torch.float32
    rows = rows_times_weights(_two_parts(h_NR, x.dtype), _twice(B), plan.offsets, None, dtype=dtype)
    delta = unpermute_cuda(rows, plan.slot_row, None)
    return delta if base is None else base.copy_(base.float() + delta)


def grouped_lora_backward_cuda(
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
    if x.shape[0] == 0:
        return tuple(t.new_zeros(t.shape if n else (0,)) for t, n in zip((x, A, B, scaling), need, strict=True))
    need_x, need_A, need_B, need_scaling = need
    grad_x, grad_A, grad_B, grad_scaling = (t.new_empty(0) for t in (x, A, B, scaling))
    plan = _groups(groups, scaling, ranks, A.shape[1])
    A, B = _without_padding(A, B, plan.kept)
    offsets, row_token = plan.offsets, plan.row_token
    wide = torch.float32
    if need_x or need_A:
        dh_NR = rows_times_weights(grad, B.transpose(1, 2), offsets, row_token, None, plan.scale, wide)
        if need_x:
            back = _twice(A.transpose(1, 2))
            rows_NH = rows_times_weights(_two_parts(dh_NR, x.dtype), back, offsets, None)
            grad_x = unpermute_cuda(rows_NH, plan.slot_row, None)
        if need_A:
            grad_A = outer_products(dh_NR.to(x.dtype), None, x, row_token, offsets, False)
    if need_B:
        h_NR = rows_times_weights(x, A, offsets, row_token, None, plan.scale)
        grad_B = outer_products(grad, row_token, h_NR, None, offsets, False)
    if need_scaling:
        h_NR = rows_times_weights(x, A, offsets, row_token, dtype=wide)
        dh_NR = rows_times_weights(grad, B.transpose(1, 2), offsets, row_token, dtype=wide)
        terms_N = (h_NR * dh_NR).sum(1)
        row_N = torch.arange(x.shape[0], device=x.device)
        in_group_GN = (row_N >= offsets[:-1, None]) & (row_N < offsets[1:, None])
        grad_scaling = torch.where(in_group_GN, terms_N, 0).sum(1)
    return grad_x, grad_A, grad_B, grad_scaling
