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
        group: a torch.distributed process group over which counts and probabilities are averaged first, so that the
            loss is that of the whole batch of a data-parallel step. The gradient stays local.

    Returns:
        () float32.
    """
    if group is not None:
        import torch.distributed as dist

        size = dist.get_world_size(group)
        counts = counts.clone()
        dist.all_reduce(counts, group=group)
        average = mean_probability.detach() / size
        dist.all_reduce(average, group=group)
        # The value is the global mean; the gradient flows through this rank's part.
        mean_probability = mean_probability + (average - mean_probability.detach())
    share = counts / counts.sum().clamp(min=1)
    return counts.numel() * (share * mean_probability).sum()


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
