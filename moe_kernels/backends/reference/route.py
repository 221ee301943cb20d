"""The routing plan: rows sorted by expert, then by slot."""

from __future__ import annotations

import torch
from torch import Tensor


def route_reference(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return offsets (E+1), row_token (N) and slot_row (T, K), all int32, for indices (T, K).

    A counting sort: a slot's row is its expert's offset plus the number of earlier slots of the same expert. It is
    written without sort, bincount or searchsorted, which some devices lack.
    """
    T, K = indices.shape
    N = T * K
    expert_N = indices.reshape(N).to(torch.int64)
    valid_N = expert_N < num_experts
    chosen_NE = (expert_N[:, None] == torch.arange(num_experts, device=indices.device)).to(torch.int32)
    running_NE = chosen_NE.cumsum(0, dtype=torch.int32)
    counts_E = chosen_NE.sum(0, dtype=torch.int32)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32, device=indices.device)
    offsets[1:] = counts_E.cumsum(0, dtype=torch.int32)

    rank_N = (running_NE * chosen_NE).sum(1, dtype=torch.int32) - 1
    row_N = offsets[expert_N.clamp(max=num_experts - 1)] + rank_N
    slot_row = torch.where(valid_N, row_N, -1).to(torch.int32)

    token_N = torch.arange(N, device=indices.device, dtype=torch.int32) // max(K, 1)
    # Slots of no expert all write into one spare entry behind the rows.
    target_N = torch.where(valid_N, row_N, N).to(torch.int64)
    row_token = torch.zeros(N + 1, dtype=torch.int32, device=indices.device).scatter_(0, target_N, token_N)[:N]
    return offsets, row_token.clone(), slot_row.view(T, K)
