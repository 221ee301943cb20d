"""What transformers does for a single step of the expert MLP, in its `eager` loop over experts and its `grouped_mm`.

It has no function for a single step, so the steps are written here in the operations that its Mixtral block and its
grouped_mm_experts_forward (5.23) use.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def gating(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The router's softmax, topk and renormalization; the same for both implementations."""
    weights, indices = torch.topk(torch.softmax(logits.float(), -1), k, -1)
    return weights / weights.sum(-1, keepdim=True), indices


def route_eager(indices: Tensor, E: int) -> list[tuple[Tensor, ...]]:
    mask = F.one_hot(indices, E + 1).permute(2, 1, 0)
    hit = torch.greater(mask.sum((-1, -2)), 0).nonzero()
    return [torch.where(mask[e[0]]) for e in hit]


def route_grouped(indices: Tensor, E: int) -> tuple[Tensor, Tensor]:
    experts, order = torch.sort(indices.reshape(-1))
    counts = torch.histc(experts.float(), E, 0, E - 1)
    return order, counts.cumsum(0, dtype=torch.int32)


def permute_eager(x: Tensor, tokens_of_expert: list[Tensor]) -> list[Tensor]:
    return [x[tokens] for tokens in tokens_of_expert]


def permute_grouped(x: Tensor, order: Tensor, k: int) -> Tensor:
    return x[order // k]


def unpermute_eager(rows: Tensor, bounds: list[int], tokens: Tensor, weights_N: Tensor, T: int) -> Tensor:
    out = torch.zeros(T, rows.shape[1], dtype=rows.dtype)
    for start, end in zip(bounds, bounds[1:], strict=False):
        weighted = rows[start:end] * weights_N[start:end, None]
        out.index_add_(0, tokens[start:end], weighted.to(rows.dtype))
    return out


def unpermute_grouped(rows: Tensor, order: Tensor, weights_N: Tensor, T: int, k: int) -> Tensor:
    weighted = rows * weights_N[:, None]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order))
    return weighted[inverse].view(T, k, -1).sum(1).to(rows.dtype)


def grouped_mm_eager(x: Tensor, w: Tensor, bounds: list[int]) -> Tensor:
    parts = zip(bounds, bounds[1:], strict=False)
    return torch.cat([F.linear(x[start:end], w[e]) for e, (start, end) in enumerate(parts)])


def grouped_mm_torch(x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    return F.grouped_mm(x, w.transpose(1, 2), offs=ends)
