"""Routing weights in the forms that models have them."""

from __future__ import annotations

from torch import Tensor


def weights_of_choices(indices: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """Routing weights (T, K) of the experts `indices` (T, K); some models of transformers 5.0 have (T, E), of all."""
    if weights.shape[1] == num_experts != indices.shape[1]:
        return weights.gather(1, indices.long().clamp(max=num_experts - 1))
    return weights
