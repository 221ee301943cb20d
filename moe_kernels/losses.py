"""Auxiliary losses of the router; smaller is better for each term of the total."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def load_balance_loss(counts: Tensor, mean_probability: Tensor, group: Any = None) -> Tensor:
    """Return E · Σ_e f_e · P_e: 1 for a uniform router, up to E for a collapsed one.

    Fedus et al. 2021 (arXiv:2101.03961), equation 4, with f normalized to sum 1 for any K.

    Args:
        counts: (E) float32, slots routed to each expert.
        mean_probability: (E) float32, mean of the full softmax.
        group: a torch.distributed process group over whose tokens both are taken first (see `reduce_statistics`).

    Returns:
        () float32.
    """
    if group is not None:
        counts, mean_probability = reduce_statistics(counts, mean_probability, group)
    share = counts / counts.sum().clamp(min=1)
    return counts.numel() * (share * mean_probability).sum()


def reduce_statistics(counts: Tensor, mean_probability: Tensor, group: Any) -> tuple[Tensor, Tensor]:
    """Return the router's statistics over the tokens of all ranks of a data-parallel group.

    It is a collective. A rank's probabilities count by its share of the tokens, which may be none. The gradient flows
    through this rank's part, at the scale that is right once gradients have been averaged over the group.

    Args:
        counts: (E) float32, slots routed to each expert.
        mean_probability: (E) float32, mean of the full softmax.
        group: a torch.distributed process group.

    Returns:
        (E) and (E): the sum of the counts, and the mean over all tokens.
    """
    import torch.distributed as dist

    mine = counts.sum()
    packed = torch.cat((counts, mean_probability.detach() * mine))
    dist.all_reduce(packed, group=group)
    total, weighted = packed.chunk(2)
    slots = total.sum().clamp(min=1)
    part = mean_probability * (mine / slots * dist.get_world_size(group))
    return total, weighted / slots + (part - part.detach())


def balance_bias_(bias: Tensor, counts: Tensor, rate: float = 1e-3) -> Tensor:
    """Move a choice bias toward balance, in place: b += rate · sign(mean(counts) − counts).

    The loss-free balancing of Wang et al. 2024 (arXiv:2408.15664), for sigmoid gating.

    Args:
        bias: (E) floating.
        counts: (E) float32, slots routed to each expert in the last step.
        rate: step size.

    Returns:
        `bias`.
    """
    with torch.no_grad():
        return bias.add_(torch.sign(counts.mean() - counts).to(bias.dtype), alpha=rate)
