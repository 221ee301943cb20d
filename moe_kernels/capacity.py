"""Limits on the tokens an expert takes: drop what is over, or let the experts choose."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from moe_kernels.ops.route import route

DROP_POLICIES = ("position", "probability")


def expert_capacity(num_tokens: int, num_experts: int, top_k: int, factor: float) -> int:
    """Return ceil(factor · T · K / E), at least 1: the slots that one expert may take."""
    return max(1, math.ceil(factor * num_tokens * top_k / num_experts))


def drop_over_capacity(
    indices: Tensor, weights: Tensor, num_experts: int, factor: float, policy: str, backend: str | None = None
) -> Tensor:
    """Turn the slots over their expert's capacity into sentinels (index E: no work, no output, no gradient).

    Args:
        indices: (T, K) int32.
        weights: (T, K) float32, the order of the policy "probability".
        num_experts: E.
        factor: capacity factor (see `expert_capacity`).
        policy: "position" keeps an expert's first slots (GShard, arXiv:2006.16668), "probability" those of the largest
            weight; equal weights in slot order.
        backend: a backend's name that must serve `route`.

    Returns:
        (T, K) int32.
    """
    T, K = indices.shape
    limit = expert_capacity(T, num_experts, K, factor)
    flat = indices.reshape(T * K, 1)
    if policy == "probability":
        order = torch.sort(weights.detach().reshape(-1), descending=True, stable=True).indices
        ordered = flat[order]
    else:
        order, ordered = None, flat
    plan = route(ordered, num_experts, backend=backend)
    start = plan.offsets[ordered.clamp(max=num_experts - 1).long()]
    over = (plan.slot_row - start >= limit).reshape(-1)
    if order is not None:
        over = torch.zeros_like(over).scatter(0, order, over)
    return torch.where(over.view(T, K), num_experts, indices).to(torch.int32)


def expert_choice(logits: Tensor, top_k: int, factor: float) -> tuple[Tensor, Tensor]:
    """Let each expert take its C best tokens, C = min(T, ceil(factor · T · K / E)).

    Zhou et al. 2022 (arXiv:2202.09368). A token may get no expert or all of them; a token's output depends on the
    other tokens of the batch, so this is for training and for whole-sequence models, not for decoding.

    Args:
        logits: (T, E) floating.
        top_k: K, the mean number of experts per token at factor 1.
        factor: capacity factor.

    Returns:
        tokens (E, C) int64 and weights (E, C) float32, the softmax over experts at the chosen pairs.
    """
    T, E = logits.shape
    scores = torch.softmax(logits, dim=1, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    C = min(T, expert_capacity(T, E, top_k, factor))
    tokens = torch.sort(scores.detach().T, dim=1, descending=True, stable=True).indices[:, :C]
    return tokens, scores.T.gather(1, tokens)
