"""Small kernels that go from slots to rows, and from rows to slots and tokens. No atomics: every order is fixed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_kernels.backends.triton import platform
from moe_kernels.backends.triton.grouped_mm_kernels import rows_of
from moe_kernels.backends.triton.products import rounded

SLOTS, COLUMNS = 16, 256
WEIGHTS = 1024


@triton.jit
def _row_weight_kernel(weights, slot_row, row_weight, N, BLOCK: tl.constexpr):
    slots = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.load(slot_row + slots, mask=slots < N, other=-1)
    tl.store(row_weight + rows, tl.load(weights + slots, mask=rows >= 0, other=0.0), mask=rows >= 0)


def weight_of_row(weights: Tensor, slot_row: Tensor) -> Tensor:
    """Return (N): each row's weight; undefined for the rows that no slot owns."""
    N = slot_row.numel()
    row_weight = torch.empty(N, dtype=torch.float32, device=weights.device)
    if N:
        weights = weights.to(torch.float32).contiguous()
        _row_weight_kernel[(triton.cdiv(N, WEIGHTS),)](weights, slot_row, row_weight, N, BLOCK=WEIGHTS)
    return row_weight


@triton.jit
def _expert_of(rows, offsets, E, E_PAD: tl.constexpr):
    """Return the expert that each row belongs to; E past the last one."""
    expert = tl.arange(0, E_PAD)
    ends = tl.load(offsets + expert + 1, mask=expert < E, other=2147483647)
    return tl.sum((ends[None, :] <= rows[:, None]).to(tl.int32), 1)


@triton.jit
def _dot_with_bias(
    grad, source, bias, rows, valid, offsets, E, O, stride_grad, E_PAD: tl.constexpr, COLUMNS: tl.constexpr
):
    """Return each row of grad times its expert's bias."""
    expert = _expert_of(rows, offsets, E, E_PAD)
    acc = tl.zeros_like(rows).to(tl.float32)
    for first in tl.range(0, O, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (columns < O)[None, :]
        g = tl.load(grad + (source[:, None].to(tl.int64) * stride_grad + columns[None, :]), mask=mask, other=0.0)
        b = tl.load(bias + (expert[:, None].to(tl.int64) * O + columns[None, :]), mask=mask, other=0.0)
        acc += tl.sum(g.to(tl.float32) * b.to(tl.float32), 1)
    return acc


@triton.jit
def _slot_gradient_kernel(
    row_sums,
    slot_row,
    grad,
    bias,
    offsets,
    out,
    N,
    K,
    E,
    H,
    blocks,
    stride_grad,
    E_PAD: tl.constexpr,
    BLOCKS: tl.constexpr,
    SLOTS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BIAS: tl.constexpr,
):
    slots = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    rows = tl.load(slot_row + slots, mask=slots < N, other=-1)
    valid = rows >= 0
    block = tl.arange(0, BLOCKS)
    places = row_sums + rows[:, None].to(tl.int64) * blocks + block[None, :]
    total = tl.sum(tl.load(places, mask=valid[:, None] & (block < blocks)[None, :], other=0.0), 1)
    if BIAS:
        total += _dot_with_bias(grad, slots // K, bias, rows, valid, offsets, E, H, stride_grad, E_PAD, COLUMNS)
    tl.store(out + slots, tl.where(valid, total, 0.0), mask=slots < N)


def slot_gradient(row_sums: Tensor, slot_row: Tensor, grad: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Return (T, K): the sum of each slot's row of `row_sums`, and of its token's grad times its expert's bias."""
    out = torch.empty(slot_row.shape, dtype=torch.float32, device=grad.device)
    N, E = slot_row.numel(), offsets.shape[0] - 1
    if N == 0:
        return out
    grad = rows_of(grad)
    _slot_gradient_kernel[(triton.cdiv(N, SLOTS),)](
        row_sums,
        slot_row,
        grad,
        None if bias is None else bias.contiguous(),
        offsets,
        out,
        N,
        slot_row.shape[1],
        E,
        grad.shape[1],
        row_sums.shape[1],
        grad.stride(0),
        E_PAD=triton.next_power_of_2(E),
        BLOCKS=triton.next_power_of_2(row_sums.shape[1]),
        SLOTS=SLOTS,
        COLUMNS=COLUMNS,
        BIAS=bias is not None,
    )
    return out


@triton.jit
def _row_dots_kernel(
    a,
    x,
    gather,
    grad,
    bias,
    offsets,
    out,
    N,
    E,
    H,
    O,
    stride_a,
    stride_x,
    stride_grad,
    E_PAD: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GATHER: tl.constexpr,
    BIAS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    valid = rows < tl.load(offsets + E)
    source = rows
    if GATHER:
        source = tl.load(gather + rows, mask=valid, other=0)
    acc = tl.zeros((ROWS,), tl.float32)
    for first in tl.range(0, H, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        mask = valid[:, None] & (columns < H)[None, :]
        left = tl.load(a + (rows[:, None].to(tl.int64) * stride_a + columns[None, :]), mask=mask, other=0.0)
        right = tl.load(x + (source[:, None].to(tl.int64) * stride_x + columns[None, :]), mask=mask, other=0.0)
        acc += tl.sum(left * right.to(tl.float32), 1)
    if BIAS:
        acc += _dot_with_bias(grad, rows, bias, rows, valid, offsets, E, O, stride_grad, E_PAD, COLUMNS)
    tl.store(out + rows, acc, mask=rows < N)


def row_dots(a: Tensor, x: Tensor, gather: Tensor | None, grad: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Return (N): each row of a (N, H) times its row of x, and of grad (N, O) times its expert's bias; 0 past the end."""
    N, E = a.shape[0], offsets.shape[0] - 1
    out = torch.empty(N, dtype=torch.float32, device=a.device)
    if N == 0:
        return out
    x, grad = rows_of(x), rows_of(grad)
    _row_dots_kernel[(triton.cdiv(N, SLOTS),)](
        a,
        x,
        gather,
        grad,
        None if bias is None else bias.contiguous(),
        offsets,
        out,
        N,
        E,
        x.shape[1],
        grad.shape[1],
        a.stride(0),
        x.stride(0),
        grad.stride(0),
        E_PAD=triton.next_power_of_2(E),
        ROWS=SLOTS,
        COLUMNS=COLUMNS,
        GATHER=gather is not None,
        BIAS=bias is not None,
    )
    return out


@triton.jit
def _token_sum_kernel(
    rows, order, starts, out, H, column_blocks, stride_rows, COLUMNS: tl.constexpr, INTERPRET: tl.constexpr
):
    token = tl.program_id(0) // column_blocks
    columns = (tl.program_id(0) % column_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    acc = tl.zeros((COLUMNS,), tl.float32)
    for i in tl.range(tl.load(starts + token), tl.load(starts + token + 1)):
        row = tl.load(order + i).to(tl.int64)
        acc += tl.load(rows + row * stride_rows + columns, mask=columns < H, other=0.0).to(tl.float32)
    value = rounded(acc, out.dtype.element_ty, INTERPRET)
    tl.store(out + token.to(tl.int64) * H + columns, value, mask=columns < H)


def sum_by_token(rows: Tensor, row_token: Tensor, offsets: Tensor, T: int) -> Tensor:
    """Return (T, H): the sum in float32 of each token's rows, in their order, where no plan gives the way back."""
    N, H = rows.shape
    out = torch.empty(T, H, dtype=rows.dtype, device=rows.device)
    if out.numel() == 0 or N == 0:
        return out.zero_()
    # The rows that no slot owns go behind the last token.
    owned = torch.arange(N, device=rows.device) < offsets[-1]
    tokens, order = torch.sort(torch.where(owned, row_token, T), stable=True)
    starts = torch.searchsorted(tokens, torch.arange(T + 1, device=rows.device, dtype=tokens.dtype))
    column_blocks = triton.cdiv(H, COLUMNS)
    _token_sum_kernel[(T * column_blocks,)](
        rows,
        order,
        starts,
        out,
        H,
        column_blocks,
        rows.stride(0),
        COLUMNS=COLUMNS,
        INTERPRET=platform.interpreted(),
    )
    return out
