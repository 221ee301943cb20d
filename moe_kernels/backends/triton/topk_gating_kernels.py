"""The kernels of top-k gating: tiles of some tokens by all experts.

The columns of the forward's tiles are the groups of experts, each padded to a power of two, so that a tile can be
seen as (token, group, member). An expert's column grows with its index: ties are decided by the column.
"""

# Kernels annotate their compile-time arguments alone.
# mypy: allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from moe_kernels.backends.triton.gating_math import (
    INFINITY,
    REMOVED,
    column_of,
    load_logits,
    log_or_zero,
    ordered,
    sigmoid,
    softmax,
    softmax_at,
    unordered,
    with_column,
)

# DeepSeek-V3's guard against a zero sum of sigmoid scores.
SIGMOID_EPSILON = tl.constexpr(1e-20)
# z, entropy and the number of tokens: what a program sums beside the experts' numbers, padded.
SUMS = tl.constexpr(4)


@triton.jit
def _expert_at(column, SIZE: tl.constexpr, SIZE_PAD: tl.constexpr):
    if SIZE == SIZE_PAD:
        return column
    else:
        return column // SIZE_PAD * SIZE + column % SIZE_PAD


@triton.jit
def _keep_groups(
    packed_TE,
    TOP_GROUPS: tl.constexpr,
    SUM_TWO: tl.constexpr,
    BLOCK_T: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_PAD: tl.constexpr,
):
    """Remove the experts outside the best groups; a group's score is its best, or the sum of its two best."""
    packed_TGS = tl.reshape(packed_TE, (BLOCK_T, GROUPS_PAD, SIZE_PAD))
    best_TG = tl.max(packed_TGS, 2)
    key_TG = (best_TG >> 32).to(tl.int32)
    if SUM_TWO and SIZE > 1:
        second_TG = tl.max(tl.where(packed_TGS == best_TG[:, :, None], REMOVED, packed_TGS), 2)
        key_TG = ordered(unordered(key_TG) + unordered((second_TG >> 32).to(tl.int32)))
    g_G = tl.arange(0, GROUPS_PAD)
    group_TG = tl.where((g_G < GROUPS)[None, :], with_column(key_TG, g_G[None, :], GROUPS_PAD), REMOVED)
    for _ in range(TOP_GROUPS):
        first_T = tl.max(group_TG, 1)
        group_TG = tl.where(group_TG == first_T[:, None], REMOVED, group_TG)
    # What the loop removed is kept.
    kept_TG1 = (group_TG == REMOVED)[:, :, None]
    return tl.reshape(tl.where(kept_TG1, packed_TGS, REMOVED), (BLOCK_T, GROUPS_PAD * SIZE_PAD))


@triton.jit
def _weights_of(l_TK, chosen_1K, top_T, total_T, SIGMOID: tl.constexpr, RENORMALIZE: tl.constexpr):
    if SIGMOID:
        weight_TK = tl.where(chosen_1K, sigmoid(l_TK), 0.0)
        if RENORMALIZE:
            weight_TK = weight_TK / (tl.sum(weight_TK, 1) + SIGMOID_EPSILON)[:, None]
    elif RENORMALIZE:
        # The same as dividing by the sum, without the underflow of experts that only the bias made win.
        weight_TK, _, _, _, _ = softmax(l_TK)
    else:
        weight_TK = softmax_at(l_TK, top_T, total_T)
    return weight_TK


@triton.jit
def _gating_kernel(
    logits,
    bias,
    noise,
    mask,
    weights,
    indices,
    part_counts,
    part_probability,
    part_sums,
    T,
    K,
    stride,
    scale,
    E: tl.constexpr,
    K_PAD: tl.constexpr,
    GROUPS: tl.constexpr,
    TOP_GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    SIZE_PAD: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    SIZE: tl.constexpr = E // GROUPS
    COLUMNS: tl.constexpr = GROUPS_PAD * SIZE_PAD
    c_E = tl.arange(0, COLUMNS)
    e_E = _expert_at(c_E, SIZE, SIZE_PAD)
    real_E = (c_E % SIZE_PAD < SIZE) & (e_E < E)
    k_K = tl.arange(0, K_PAD)
    i_T1 = tl.arange(0, BLOCK_T)[:, None]
    counts_TE = tl.zeros((BLOCK_T, COLUMNS), tl.int32)
    probability_TE = tl.zeros((BLOCK_T, COLUMNS), tl.float32)
    z_T = tl.zeros((BLOCK_T,), tl.float32)
    entropy_T = tl.zeros((BLOCK_T,), tl.float32)
    tokens_T = tl.zeros((BLOCK_T,), tl.float32)
    if bias is not None:
        bias_E = tl.load(bias + e_E, mask=real_E, other=0.0).to(tl.float32)

    for first in range(tl.program_id(0) * BLOCK_T, T, tl.num_programs(0) * BLOCK_T):
        start = tl.cast(first, tl.int64)
        t_T = first + tl.arange(0, BLOCK_T)
        here_TE = (t_T < T)[:, None] & real_E[None, :]
        l_TE = load_logits(logits, noise, start, i_T1, e_E[None, :], stride, E, here_TE)
        p_TE, lse_T, broken_T, top_T, total_T = softmax(l_TE)

        choice_TE = l_TE
        if bias is not None:
            score_TE = sigmoid(l_TE) if SIGMOID else p_TE
            choice_TE = tl.where(tl.abs(l_TE) == INFINITY, l_TE, score_TE + bias_E[None, :])
        packed_TE = with_column(ordered(choice_TE), c_E[None, :], COLUMNS)
        packed_TE = tl.where(real_E[None, :], packed_TE, REMOVED)
        if GROUPS > 1:
            packed_TE = _keep_groups(
                packed_TE, TOP_GROUPS, bias is not None, BLOCK_T, GROUPS, GROUPS_PAD, SIZE, SIZE_PAD
            )
        open_TE = packed_TE != REMOVED
        index_TK = tl.zeros((BLOCK_T, K_PAD), tl.int32)
        for k in range(K):
            best_T = tl.max(packed_TE, 1)
            expert_T = _expert_at(column_of(best_T, COLUMNS), SIZE, SIZE_PAD)
            index_TK = tl.where(k_K[None, :] == k, expert_T[:, None], index_TK)
            packed_TE = tl.where(packed_TE == best_T[:, None], REMOVED, packed_TE)
        index_TK = tl.where(broken_T[:, None], k_K[None, :], index_TK)
        chosen_TE = tl.where(broken_T[:, None], (e_E < K)[None, :], open_TE & (packed_TE == REMOVED))

        # The chosen logits are read again: cheaper than finding them in the tile.
        here_TK = (t_T < T)[:, None] & (k_K < K)[None, :]
        l_TK = load_logits(logits, noise, start, i_T1, index_TK, stride, E, here_TK)
        weight_TK = _weights_of(l_TK, (k_K < K)[None, :], top_T, total_T, SIGMOID, RENORMALIZE)
        weight_TK = tl.where(broken_T[:, None], float("nan"), weight_TK * scale)
        at_TK = i_T1 * K + k_K[None, :]
        tl.store(weights + start * K + at_TK, weight_TK, mask=here_TK)
        tl.store(indices + start * K + at_TK, index_TK, mask=here_TK)

        counted_T = t_T < T
        if mask is not None:
            counted_T = tl.load(mask + t_T, mask=counted_T, other=0) != 0
        counts_TE += (chosen_TE & counted_T[:, None]).to(tl.int32)
        probability_TE += tl.where(counted_T[:, None], p_TE, 0.0)
        z_T += tl.where(counted_T, lse_T * lse_T, 0.0)
        entropy_T -= tl.where(counted_T, tl.sum(p_TE * log_or_zero(p_TE), 1), 0.0)
        tokens_T += counted_T.to(tl.float32)

    program = tl.program_id(0)
    tl.store(part_counts + program * E + e_E, tl.sum(counts_TE, 0), mask=real_E)
    tl.store(part_probability + program * E + e_E, tl.sum(probability_TE, 0), mask=real_E)
    tl.store(part_sums + program * SUMS, tl.sum(z_T, 0))
    tl.store(part_sums + program * SUMS + 1, tl.sum(entropy_T, 0))
    tl.store(part_sums + program * SUMS + 2, tl.sum(tokens_T, 0))


@triton.jit
def _statistics_kernel(
    part_counts,
    part_probability,
    part_sums,
    counts,
    mean_probability,
    z,
    entropy,
    programs,
    E,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """Add up the programs' sums, in one order."""
    e_E = tl.program_id(0) * BLOCK_E + tl.arange(0, BLOCK_E)
    s_S = tl.arange(0, SUMS)
    counts_PE = tl.zeros((ROWS, BLOCK_E), tl.int32)
    probability_PE = tl.zeros((ROWS, BLOCK_E), tl.float32)
    sums_PS = tl.zeros((ROWS, SUMS), tl.float32)
    for first in range(0, programs, ROWS):
        p_P = first + tl.arange(0, ROWS)
        here_PE = (p_P < programs)[:, None] & (e_E < E)[None, :]
        at_PE = p_P[:, None] * E + e_E[None, :]
        counts_PE += tl.load(part_counts + at_PE, mask=here_PE, other=0)
        probability_PE += tl.load(part_probability + at_PE, mask=here_PE, other=0.0)
        here_PS = (p_P < programs)[:, None] & (s_S < 3)[None, :]
        sums_PS += tl.load(part_sums + p_P[:, None] * SUMS + s_S[None, :], mask=here_PS, other=0.0)
    sums_S = tl.sum(sums_PS, 0)
    M = tl.maximum(tl.sum(tl.where(s_S == 2, sums_S, 0.0), 0), 1.0)
    tl.store(counts + e_E, tl.sum(counts_PE, 0).to(tl.float32), mask=e_E < E)
    tl.store(mean_probability + e_E, tl.sum(probability_PE, 0) / M, mask=e_E < E)
    if tl.program_id(0) == 0:
        tl.store(z, tl.sum(tl.where(s_S == 0, sums_S, 0.0), 0) / M)
        tl.store(entropy, tl.sum(tl.where(s_S == 1, sums_S, 0.0), 0) / M)


@triton.jit
def _gating_backward_kernel(
    grad_weights,
    grad_mean_probability,
    grad_z,
    grad_entropy,
    logits,
    noise,
    mask,
    counted,
    weights,
    indices,
    grad,
    T,
    K,
    stride,
    scale,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK_T
    t_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    i_T1 = tl.arange(0, BLOCK_T)[:, None]
    e_E = tl.arange(0, E_PAD)
    here_TE = (t_T < T)[:, None] & (e_E < E)[None, :]
    l_TE = load_logits(logits, noise, start, i_T1, e_E[None, :], stride, E, here_TE)
    p_TE, lse_T, _, _, _ = softmax(l_TE)

    # The statistics.
    if mask is not None:
        valid_T = tl.load(mask + t_T, mask=t_T < T, other=0) != 0
        M = tl.maximum(tl.load(counted), 1).to(tl.float32)
    else:
        valid_T = t_T < T
        M = T * 1.0
    log_TE = log_or_zero(p_TE)
    entropy_T = -tl.sum(p_TE * log_TE, 1)
    gp_1E = tl.load(grad_mean_probability + e_E, mask=e_E < E, other=0.0)[None, :]
    grad_TE = p_TE * (gp_1E - tl.sum(p_TE * gp_1E, 1)[:, None])
    grad_TE += 2 * lse_T[:, None] * p_TE * tl.load(grad_z)
    grad_TE -= tl.load(grad_entropy) * p_TE * (log_TE + entropy_T[:, None])
    grad_TE = tl.where(valid_T[:, None], grad_TE / M, 0.0)

    # The weights: their gradients, and the weights themselves, at the chosen experts.
    g_TE = tl.zeros((BLOCK_T, E_PAD), tl.float32)
    w_TE = tl.zeros((BLOCK_T, E_PAD), tl.float32)
    chosen_TE = g_TE != 0
    for k in range(K):
        at_T = tl.arange(0, BLOCK_T) * K + k
        index_T = tl.load(indices + start * K + at_T, mask=t_T < T, other=-1)
        this_TE = index_T[:, None] == e_E[None, :]
        chosen_TE |= this_TE
        g_T = tl.load(grad_weights + start * K + at_T, mask=t_T < T, other=0.0) * scale
        g_TE = tl.where(this_TE, g_T[:, None], g_TE)
        if RENORMALIZE:
            w_T = tl.load(weights + start * K + at_T, mask=t_T < T, other=0.0)
            w_TE = tl.where(this_TE, w_T[:, None], w_TE)
    if RENORMALIZE:
        w_TE = tl.where(scale != 0, w_TE / scale, 0.0)
        centred_TE = g_TE - tl.sum(g_TE * w_TE, 1)[:, None]
        if SIGMOID:
            s_TE = sigmoid(l_TE)
            total_T = tl.sum(tl.where(chosen_TE, s_TE, 0.0), 1) + SIGMOID_EPSILON
            part_TE = centred_TE * s_TE * (1 - s_TE) / total_T[:, None]
        else:
            part_TE = w_TE * centred_TE
        grad_TE += tl.where(chosen_TE, part_TE, 0.0)
    elif SIGMOID:
        s_TE = sigmoid(l_TE)
        grad_TE += tl.where(chosen_TE, g_TE * s_TE * (1 - s_TE), 0.0)
    else:
        grad_TE += p_TE * (g_TE - tl.sum(p_TE * g_TE, 1)[:, None])
    tl.store(grad + start * E + (i_T1 * E + e_E[None, :]), grad_TE.to(grad.dtype.element_ty), mask=here_TE)
