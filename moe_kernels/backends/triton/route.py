"""The routing plan, by counting: a slot's row is the number of slots that come before it in the order of the rows.

Few slots: every slot is compared with every other, in one launch. Many: each program counts the experts of its own
chunk of slots; then it finds its first row of each expert from the counts of all the chunks, and hands rows out.
Slots of no expert are one expert more, the last: so their rows, from offsets[E] on, get their zeros on the way.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Up to here all pairs of slots are compared; the choice is not yet measured.
FEW_SLOTS = 2048
# Comparison: slots (and offsets) of a program, and how many slots it compares them with at once.
COMPARED, WITH, COMPARE_WARPS = 32, 512, 8
# Counting: slots that are ranked among themselves, in how many at a time, and how many counts are read at once.
RANKED, STEP, COUNTS_READ = 256, 64, 8192
RANK_WARPS = 8
# More programs share the ranking but read more counts.
PROGRAMS, MORE_PROGRAMS = 64, 128


def chunking(N: int) -> tuple[int, int]:
    """Return the number of programs for N slots, and the number of blocks of `RANKED` slots that each ranks."""
    blocks = -(-N // RANKED)
    each = -(-blocks // (PROGRAMS if N <= PROGRAMS * 1024 else MORE_PROGRAMS))
    return -(-blocks // each), each


def bins(E: int) -> int:
    """Return the power of two that holds E experts and the slots of none."""
    return triton.next_power_of_2(E + 1)


def counts_read(E: int) -> int:
    """Return how many chunks' counts are added up at once."""
    return max(1, COUNTS_READ // bins(E))


@triton.jit
def _expert_of(indices, n_B, N, E):
    """Return each slot's expert; E for every sentinel and behind the last slot."""
    index_B = tl.load(indices + n_B, mask=n_B < N, other=E)
    return tl.minimum(index_B, E).to(tl.int32)


@triton.jit
def _store_rows(expert_B, n_B, row_B, row_token, slot_row, N, E, K):
    owned_B = expert_B < E
    tl.store(slot_row + n_B, tl.where(owned_B, row_B, -1), mask=n_B < N)
    tl.store(row_token + row_B, tl.where(owned_B, n_B // K, 0), mask=n_B < N)


@triton.jit
def _compare_kernel(indices, offsets, row_token, slot_row, N, E, K, COMPARED: tl.constexpr, WITH: tl.constexpr):
    # Slots have the order of expert · N + slot, and expert e's first row that of e · N: both are counted alike.
    n_B = tl.program_id(0) * COMPARED + tl.arange(0, COMPARED)
    slot_B = n_B < N
    expert_B = _expert_of(indices, n_B, N, E)
    order_B = tl.where(slot_B, expert_B * N + n_B, (n_B - N) * N)
    # Summed over the lanes only once, at the end.
    before_BW = tl.zeros((COMPARED, WITH), tl.int32)
    for first in range(0, N, WITH):
        n_W = first + tl.arange(0, WITH)
        order_W = _expert_of(indices, n_W, N, E) * N + n_W
        # Behind the last slot, nothing may come before an offset.
        order_W = tl.where(n_W < N, order_W, 2147483647)
        before_BW += (order_W[None, :] < order_B[:, None]).to(tl.int32)
    row_B = tl.sum(before_BW, 1)
    _store_rows(expert_B, n_B, row_B, row_token, slot_row, N, E, K)
    tl.store(offsets + n_B - N, row_B, mask=(n_B >= N) & (n_B <= N + E))


@triton.jit
def _count_kernel(indices, counts, N, E, each, RANKED: tl.constexpr, BINS: tl.constexpr):
    chunk = tl.program_id(0)
    e_E = tl.arange(0, BINS)
    count_E = tl.zeros((BINS,), tl.int32)
    for block in range(each):
        n_B = (chunk * each + block) * RANKED + tl.arange(0, RANKED)
        count_E += tl.histogram(_expert_of(indices, n_B, N, E), BINS)
    tl.store(counts + chunk * (E + 1) + e_E, count_E, mask=e_E <= E)


@triton.jit
def _rank_kernel(
    indices,
    counts,
    offsets,
    row_token,
    slot_row,
    N,
    E,
    K,
    programs,
    each,
    RANKED: tl.constexpr,
    STEP: tl.constexpr,
    BINS: tl.constexpr,
    COUNTS_READ: tl.constexpr,
):
    chunk = tl.program_id(0)
    e_E = tl.arange(0, BINS)
    all_E = tl.zeros((BINS,), tl.int32)
    earlier_E = tl.zeros((BINS,), tl.int32)
    for first in range(0, programs, COUNTS_READ):
        c_C = first + tl.arange(0, COUNTS_READ)
        seen_CE = (c_C[:, None] < programs) & (e_E[None, :] <= E)
        count_CE = tl.load(counts + c_C[:, None] * (E + 1) + e_E[None, :], mask=seen_CE, other=0)
        all_E += tl.sum(count_CE, 0)
        earlier_E += tl.sum(tl.where(c_C[:, None] < chunk, count_CE, 0), 0)
    first_E = tl.cumsum(all_E, 0) - all_E
    if chunk == 0:
        # The last bin is that of the slots of no expert: it begins where the owned rows end.
        tl.store(offsets + e_E, first_E, mask=e_E <= E)

    next_E = first_E + earlier_E
    for block in range(each):
        start = (chunk * each + block) * RANKED
        n_B = start + tl.arange(0, RANKED)
        expert_B = _expert_of(indices, n_B, N, E)
        row_B = tl.gather(next_E, expert_B, 0)
        for step in range(0, RANKED, STEP):
            n_S = start + step + tl.arange(0, STEP)
            expert_S = _expert_of(indices, n_S, N, E)
            # The slots that are ranked lie along the lanes, so that most of the sum stays in a thread.
            before_SB = (expert_S[:, None] == expert_B[None, :]) & (n_S[:, None] < n_B[None, :])
            row_B += tl.sum(before_SB.to(tl.int32), 0)
        _store_rows(expert_B, n_B, row_B, row_token, slot_row, N, E, K)
        next_E += tl.histogram(expert_B, BINS)


def route_triton(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets (E+1), row_token (N) and slot_row (T, K), all int32, for indices (T, K) int32 or int64."""
    T, K = indices.shape
    N, E = T * K, num_experts
    indices = indices.contiguous()
    int32 = torch.int32
    offsets, row_token = indices.new_empty(E + 1, dtype=int32), indices.new_empty(N, dtype=int32)
    slot_row = indices.new_empty(T, K, dtype=int32)
    if N <= FEW_SLOTS and (E + 1) * (N + 1) < 2**31:
        grid = (triton.cdiv(N + E + 1, COMPARED),)
        _compare_kernel[grid](
            indices, offsets, row_token, slot_row, N, E, max(K, 1), COMPARED, WITH, num_warps=COMPARE_WARPS
        )
        return offsets, row_token, slot_row
    programs, each = chunking(N)
    counts = indices.new_empty(programs, E + 1, dtype=int32)
    _count_kernel[(programs,)](indices, counts, N, E, each, RANKED, bins(E))
    _rank_kernel[(programs,)](
        indices,
        counts,
        offsets,
        row_token,
        slot_row,
        N,
        E,
        max(K, 1),
        programs,
        each,
        RANKED,
        STEP,
        bins(E),
        counts_read(E),
        num_warps=RANK_WARPS,
    )
    return offsets, row_token, slot_row
