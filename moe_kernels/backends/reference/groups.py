"""Products over ragged groups of rows, one expert a group."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F


def accumulate_dtype(x: Tensor) -> torch.dtype:
    """float64 stays what it is; everything else is summed in float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Let matmuls keep the dtype of their operands: an op casts its arguments, never what it has in float32."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _capturing(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def group_bounds(offsets: Tensor) -> list[tuple[int, int, int]]:
    """Return (expert, first row, end row) of every expert that has rows.

    This is the reference's one read of a device value. A loop over all experts without it would do E/K times the work.
    """
    ends = offsets.tolist()
    return [(e, ends[e], ends[e + 1]) for e in range(len(ends) - 1) if ends[e + 1] > ends[e]]


def expert_of_row(offsets: Tensor, N: int) -> Tensor:
    """Return the expert of each row (N,); E for the rows that no expert owns."""
    rows = torch.arange(N, device=offsets.device, dtype=torch.int32)
    return (rows[:, None] >= offsets[None, 1:]).sum(1)


def grouped_matmul(x_NH: Tensor, w_EOH: Tensor, offsets: Tensor, bias_EO: Tensor | None = None) -> Tensor:
    """Multiply each row by its expert's matrix and add its bias, rounded once.

    Returns:
        (N, O) in x's dtype; rows from offsets[E] on are zero.
    """
    out_NO = x_NH.new_zeros(x_NH.shape[0], w_EOH.shape[1])
    if _capturing(x_NH):
        # No host may learn the offsets while a CUDA graph is recorded: every expert sees every row.
        owner_N = expert_of_row(offsets, x_NH.shape[0])
        for e in range(w_EOH.shape[0]):
            all_NO = F.linear(x_NH, w_EOH[e], None if bias_EO is None else bias_EO[e])
            out_NO = torch.where((owner_N == e)[:, None], all_NO, out_NO)
        return out_NO
    for e, start, end in group_bounds(offsets):
        out_NO[start:end] = F.linear(x_NH[start:end], w_EOH[e], None if bias_EO is None else bias_EO[e])
    return out_NO


def grouped_outer(a_NO: Tensor, b_NH: Tensor, offsets: Tensor) -> Tensor:
    """Sum a[n] ⊗ b[n] over each expert's rows.

    Returns:
        (E, O, H) in a's dtype; zero for an expert without rows.
    """
    E = offsets.shape[0] - 1
    out_EOH = a_NO.new_zeros(E, a_NO.shape[1], b_NH.shape[1])
    if _capturing(a_NO):
        owner_N = expert_of_row(offsets, a_NO.shape[0])
        for e in range(E):
            out_EOH[e] = torch.where((owner_N == e)[:, None], a_NO, 0).T @ b_NH
        return out_EOH
    for e, start, end in group_bounds(offsets):
        out_EOH[e] = a_NO[start:end].T @ b_NH[start:end]
    return out_EOH


def grouped_sum(a_NO: Tensor, offsets: Tensor) -> Tensor:
    """Sum each expert's rows: (E, O) in a's dtype, summed in float32 or better."""
    E = offsets.shape[0] - 1
    wide_NO = a_NO.to(accumulate_dtype(a_NO))
    owner_N = expert_of_row(offsets, a_NO.shape[0])
    if _capturing(a_NO):
        sums = [torch.where((owner_N == e)[:, None], wide_NO, 0).sum(0) for e in range(E)]
        return torch.stack(sums).to(a_NO.dtype)
    out_EO = wide_NO.new_zeros(E, a_NO.shape[1])
    for e, start, end in group_bounds(offsets):
        out_EO[e] = wide_NO[start:end].sum(0)
    return out_EO.to(a_NO.dtype)


def per_row(value_EO: Tensor, offsets: Tensor, N: int) -> Tensor:
    """Give each row its expert's vector: (N, O), zero for the rows that no expert owns."""
    E = offsets.shape[0] - 1
    owner_N = expert_of_row(offsets, N)
    rows_NO = value_EO[owner_N.clamp(max=E - 1)]
    return torch.where((owner_N < E)[:, None], rows_NO, torch.zeros_like(rows_NO))
