"""The norm and the pre-norm block of the MoE transformer.

Letters: B batch, S positions, H hidden, T = B * S tokens, E experts, K experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from moe_kernels import MoELayer

from .attention import Attention
from .config import SpecMoeConfig


class RouterStatistics(NamedTuple):
    """What one block's router reports: logits (T, E), counts (E), and the scalars load_balance, z_loss, entropy."""

    logits: torch.Tensor
    counts: torch.Tensor
    load_balance: torch.Tensor
    z_loss: torch.Tensor
    entropy: torch.Tensor


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned gain (Zhang and Sennrich, 2019)."""

    def __init__(self, hidden_size: int, eps: float, initial_gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), initial_gain))
        self.eps, self.initial_gain = eps, initial_gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scales the last dimension of x (..., H) to unit root mean square, then by the gain."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Layer norm with a learned gain and no bias."""

    def __init__(self, hidden_size: int, eps: float, initial_gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((hidden_size,), initial_gain))
        self.eps, self.initial_gain = eps, initial_gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Brings the last dimension of x (..., H) to zero mean and unit variance, then scales by the gain."""
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


def make_norm(config: SpecMoeConfig, initial_gain: float = 1.0) -> RMSNorm | LayerNorm:
    """Returns the norm that the configuration names; its gain starts at `initial_gain`."""
    kind = RMSNorm if config.norm_type == "rms_norm" else LayerNorm
    return kind(config.hidden_size, config.norm_eps, initial_gain)


class Block(GradientCheckpointingLayer):
    """Attention, then a Mixture-of-Experts feed-forward; each reads the normed residual stream and adds to it."""

    def __init__(self, config: SpecMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MoELayer(
            config.hidden_size,
            config.intermediate_size,
            config.num_experts,
            config.num_experts_per_tok,
            activation=config.hidden_act,
            gated=config.gated_experts,
            score=config.router_score,
            renormalize=config.norm_topk_prob,
            shared_intermediate_size=config.shared_intermediate_size,
            backend=config.moe_backend,
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BSH: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        token_mask: torch.Tensor | None = None,
        output_router: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        """Runs the block.

        Args:
            x_BSH: (B, S, H), the residual stream.
            rotary: cosines and sines, as `rotary_angles` returns them.
            mask: attention mask, as `attention_mask_for` returns it.
            past_key_values: the cache, when one is used.
            token_mask: (B, S) bool, the tokens that count in the router's statistics; None for all.
            output_router: whether the router's statistics are returned.

        Returns:
            The new residual stream and, if asked for, the fields of `RouterStatistics`: one flat tuple, since
            gradient checkpointing follows only tensors at the top level of a block's output.
        """
        attended = self.self_attn(self.input_layernorm(x_BSH), rotary, mask, past_key_values)
        x_BSH = x_BSH + self.dropout(attended)
        normed = self.post_attention_layernorm(x_BSH)
        if not output_router:
            return (x_BSH + self.dropout(self.mlp(normed)),)
        mixed, router = self.mlp(normed, return_router=True, mask=token_mask)
        statistics = RouterStatistics(
            router.logits, router.counts, router.load_balance_loss, router.z_loss, router.entropy
        )
        return (x_BSH + self.dropout(mixed), *statistics)
