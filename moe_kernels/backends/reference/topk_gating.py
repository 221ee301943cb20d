"""Scores, choice, weights and the statistics of the auxiliary losses."""

from __future__ import annotations

import torch
from torch import Tensor

from moe_kernels.backends.reference.groups import accumulate_dtype

# DeepSeek-V3's guard against a zero sum of sigmoid scores.
SIGMOID_EPSILON = 1e-20


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax and logsumexp (T, 1); entries of +inf share the whole mass of their row."""
    infinite = logits == torch.inf
    many = infinite.sum(1, keepdim=True)
    shared = infinite / many.clamp(min=1)
    top = logits.amax(1, keepdim=True)
    shifted = torch.exp(logits - torch.where(top == torch.inf, 0, top))
    total = shifted.sum(1, keepdim=True)
    lse = torch.where(top == torch.inf, top, top + torch.log(total))
    # A NaN beside +inf is still a NaN row.
    nan = torch.isnan(logits).any(1, keepdim=True)
    p = torch.where(many > 0, shared.to(logits.dtype), shifted / total)
    return torch.where(nan, torch.nan, p), lse


def _descending(choice: Tensor) -> Tensor:
    return torch.sort(choice, dim=1, descending=True, stable=True).indices


def _keep_groups(choice: Tensor, num_groups: int, top_groups: int, sum_two: bool) -> Tensor:
    """Return (T, E) True in the best groups (DeepSeek-V3: sum of two with a bias; else the maximum)."""
    T, E = choice.shape
    size = E // num_groups
    by_group = choice.view(T, num_groups, size)
    best = torch.sort(by_group, dim=2, descending=True).values
    score = best[:, :, : 2 if sum_two else 1].sum(2)
    order = _descending(score)
    kept = torch.zeros(T, num_groups, dtype=torch.bool, device=choice.device)
    kept.scatter_(1, order[:, :top_groups], True)
    return kept[:, :, None].expand(T, num_groups, size).reshape(T, E)


def _choose(logits: Tensor, scores: Tensor, k: int, bias: Tensor | None, num_groups: int, top_groups: int) -> Tensor:
    choice = logits
    if bias is not None:
        choice = scores + bias.to(scores.dtype)
        choice = torch.where(torch.isinf(logits), logits, choice)
    order = _descending(choice)
    if num_groups > 1:
        kept = _keep_groups(choice, num_groups, top_groups, bias is not None)
        # Stable: kept experts first, each part in the order it had. An excluded expert is below a kept one at -inf.
        first = torch.sort(kept.gather(1, order).to(torch.int32), dim=1, descending=True, stable=True).indices
        order = order.gather(1, first)
    return order[:, :k]


def topk_gating_reference(
    logits: Tensor,
    k: int,
    score: str,
    bias: Tensor | None,
    num_groups: int,
    top_groups: int,
    renormalize: bool,
    scale: float,
    noise: Tensor | None,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return weights, indices, counts, mean probability, mean squared logsumexp and mean entropy."""
    T, E = logits.shape
    wide = accumulate_dtype(logits)
    l_TE = logits.to(wide) if noise is None else logits.to(wide) + noise.to(wide)
    p_TE, lse_T1 = _softmax(l_TE)
    scores = p_TE if score == "softmax" else torch.sigmoid(l_TE)

    broken = torch.isnan(l_TE).any(1, keepdim=True) | (l_TE == -torch.inf).all(1, keepdim=True)
    indices = _choose(l_TE, scores, k, bias, num_groups, top_groups)
    indices = torch.where(broken, torch.arange(k, device=logits.device), indices)
    weights = scores.gather(1, indices)
    if renormalize and score == "softmax":
        # The same as dividing by the sum, without the underflow of experts that only the bias made win.
        weights, _ = _softmax(l_TE.gather(1, indices))
    elif renormalize:
        weights = weights / (weights.sum(1, keepdim=True) + SIGMOID_EPSILON)
    weights = torch.where(broken, torch.nan, weights * scale)

    valid = torch.ones(T, 1, dtype=torch.bool, device=logits.device) if mask is None else mask[:, None]
    M = valid.sum().clamp(min=1).to(wide)
    chosen = (indices[:, :, None] == torch.arange(E, device=logits.device)) & valid[:, :, None]
    counts = chosen.sum((0, 1)).to(wide)
    mean_probability = torch.where(valid, p_TE, 0).sum(0) / M
    z = torch.where(valid, lse_T1 * lse_T1, 0).sum() / M
    log_p = torch.log(torch.where(p_TE > 0, p_TE, 1))
    entropy_T = -(p_TE * log_p).sum(1, keepdim=True)
    entropy = torch.where(valid, entropy_T, 0).sum() / M
    return weights, indices.to(torch.int32), counts, mean_probability, z, entropy


def topk_gating_backward_reference(
    grad_weights: Tensor,
    grad_mean_probability: Tensor,
    grad_z: Tensor,
    grad_entropy: Tensor,
    logits: Tensor,
    noise: Tensor | None,
    mask: Tensor | None,
    weights: Tensor,
    indices: Tensor,
    score: str,
    renormalize: bool,
    scale: float,
) -> Tensor:
    """Return the gradient of the logits (T, E), in their dtype.

    With p the softmax, s the scores at the chosen experts and w̃ = weights / scale:
    statistics: p∘(g_P − ⟨p, g_P⟩)/M + 2·lse·p·g_z/M − g_H·p∘(log p + H)/M; weights, renormalized: the softmax (or
    sum-quotient) rule over the chosen; not renormalized: the full softmax's rule, or s(1 − s) for the sigmoid.
    """
    wide = accumulate_dtype(logits)
    l_TE = logits.to(wide) if noise is None else logits.to(wide) + noise.to(wide)
    p_TE, lse_T1 = _softmax(l_TE)
    T = logits.shape[0]
    valid = torch.ones(T, 1, dtype=torch.bool, device=logits.device) if mask is None else mask[:, None]
    M = valid.sum().clamp(min=1).to(wide)

    log_p = torch.log(torch.where(p_TE > 0, p_TE, 1))
    entropy_T1 = -(p_TE * log_p).sum(1, keepdim=True)
    gp_E = grad_mean_probability.to(wide)
    grad = p_TE * (gp_E - (p_TE * gp_E).sum(1, keepdim=True))
    grad = grad + 2 * lse_T1 * p_TE * grad_z
    grad = grad - grad_entropy * p_TE * (log_p + entropy_T1)
    grad = torch.where(valid, grad / M, 0)

    at = indices.to(torch.int64)
    g_TK = grad_weights.to(wide) * scale
    if renormalize:
        w_TK = weights.to(wide) / scale if scale else torch.zeros_like(g_TK)
        centred = g_TK - (g_TK * w_TK).sum(1, keepdim=True)
        if score == "softmax":
            chosen = w_TK * centred
        else:
            s_TK = torch.sigmoid(l_TE.gather(1, at))
            chosen = centred * s_TK * (1 - s_TK) / (s_TK.sum(1, keepdim=True) + SIGMOID_EPSILON)
        grad = grad.scatter_add(1, at, chosen)
    elif score == "sigmoid":
        s_TK = torch.sigmoid(l_TE.gather(1, at))
        grad = grad.scatter_add(1, at, g_TK * s_TK * (1 - s_TK))
    else:
        full = torch.zeros_like(p_TE).scatter_add(1, at, g_TK)
        grad = grad + p_TE * (full - (p_TE * full).sum(1, keepdim=True))
    return grad.to(logits.dtype)
