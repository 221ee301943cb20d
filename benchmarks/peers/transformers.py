"""transformers' own expert MLP: its `eager` loop over experts and its `grouped_mm`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from peers import Forward


def mixtral_experts(gate_up: Tensor, down: Tensor, implementation: str) -> Callable[..., Tensor]:
    """Return transformers' Mixtral experts over these weights, called as (x, indices int64, weights)."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    E, H, I = down.shape
    config = MixtralConfig(hidden_size=H, intermediate_size=I, num_local_experts=E)
    config._experts_implementation = implementation
    with torch.device("meta"):
        experts = MixtralExperts(config)
    experts.gate_up_proj = torch.nn.Parameter(gate_up, requires_grad=gate_up.requires_grad)
    experts.down_proj = torch.nn.Parameter(down, requires_grad=down.requires_grad)
    return experts


def forward(weights: list[tuple[Tensor, Tensor]], implementation: str) -> Forward:
    """Return the forward over the copies of the weights themselves: nothing is packed."""
    experts = [mixtral_experts(*copy, implementation) for copy in weights]
    return lambda copy, tokens: experts[copy](tokens.x, tokens.wide, tokens.narrow)
