"""Tiny models for the transformer's tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specmoe.transformer import SpecMoeConfig, SpecMoeForCausalLM

TINY = {
    "vocab_size": 29,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 32,
    # Larger than the default, so that a wrong mask or a wrong position changes the logits well above rounding.
    "initializer_range": 0.2,
}


@pytest.fixture
def make_model() -> Callable[..., SpecMoeForCausalLM]:
    """Returns a function that makes a seeded tiny model in evaluation mode."""

    def make(**changes: Any) -> SpecMoeForCausalLM:
        torch.manual_seed(0)
        return SpecMoeForCausalLM(SpecMoeConfig(**{**TINY, **changes})).eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """Returns (3, 11) token ids."""
    return torch.randint(29, (3, 11), generator=torch.Generator().manual_seed(1))
