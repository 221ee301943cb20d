"""Tiny random models of the kinds that the integrations meet."""

from __future__ import annotations

import torch
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM, PreTrainedModel

VOCABULARY = 64
SIZES = dict(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    vocab_size=VOCABULARY,
)


def mixtral(seed: int = 0, **options) -> PreTrainedModel:
    """Row-major weights, silu, no biases."""
    torch.manual_seed(seed)
    return MixtralForCausalLM(MixtralConfig(**{**SIZES, **options})).eval()


def gpt_oss(seed: int = 0, **options) -> PreTrainedModel:
    """Transposed and interleaved weights, clamped, with biases."""
    torch.manual_seed(seed)
    model = GptOssForCausalLM(GptOssConfig(**{**SIZES, "head_dim": 16, **options})).eval()
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    return model


MODELS = {"mixtral": mixtral, "gpt_oss": gpt_oss}


def tokens(rows: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))
