"""Causal self-attention with rotary positions and a key-value cache.

Letters: B batch, S positions of this call, P positions already in the cache, D width of a head, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import Cache

from .config import SpecMoeConfig
from .rotary import rotate


def attention_mask_for(
    attention_mask: torch.Tensor | None, query_length: int, past_length: int, device: torch.device
) -> torch.Tensor | None:
    """Returns which keys each query may see, or None where plain causal attention needs no mask.

    A query always sees itself, even where it is padding: a row with nothing to attend to would be NaN and, through
    the cache, would spoil the real tokens.

    Args:
        attention_mask: (B, P + S), 1 or True for real tokens; or (B, 1, S, slots) bool as `generate` prepares it for a
            cache of fixed size; None when there is no padding.
        query_length: S.
        past_length: P.
        device: where the mask is made.

    Returns:
        (B or 1, 1, S, P + S or slots) bool, or None.

    Raises:
        ValueError: `attention_mask` does not cover the cached and the new positions.
    """
    key_length = past_length + query_length
    queries = torch.arange(past_length, key_length, device=device)[:, None]
    if attention_mask is not None and attention_mask.dim() == 4:
        slots = torch.arange(attention_mask.shape[-1], device=device)[None, :]
        return attention_mask.bool() | (slots == queries)[None, None]
    if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.shape[1] != key_length):
        raise ValueError(
            f"SpecMoeModel: attention_mask: expected shape (batch, {key_length}) "
            f"({past_length} cached and {query_length} new positions), got {tuple(attention_mask.shape)}"
        )
    # On CPU a look at the mask is free and keeps the faster maskless attention; elsewhere it would stall the device.
    if attention_mask is not None and device.type == "cpu" and bool(attention_mask.all()):
        attention_mask = None
    if attention_mask is None and (past_length == 0 or query_length == 1):
        return None
    keys = torch.arange(key_length, device=device)[None, :]
    visible = (keys <= queries)[None, None]
    if attention_mask is not None:
        visible = visible & (attention_mask.bool()[:, None, None, :] | (keys == queries)[None, None])
    return visible


class ResidualLinear(nn.Linear):
    """A linear map that writes to the residual stream; its class tells the initialization so."""


class Attention(nn.Module):
    """Multi-head causal attention through `scaled_dot_product_attention`."""

    def __init__(self, config: SpecMoeConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qk_norm, self.norm_eps = config.qk_norm, config.norm_eps
        self.normalize = F.rms_norm if config.norm_type == "rms_norm" else F.layer_norm
        self.dropout = config.dropout
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = ResidualLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x_BSH: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> torch.Tensor:
        """Attends from every position to itself and those before it.

        Args:
            x_BSH: (B, S, H).
            rotary: cosines and sines, as `rotary_angles` returns them.
            mask: (B or 1, 1, S, P + S) bool, True where a key is visible; None for plain causal attention.
            past_key_values: cache that receives this layer's keys and values and returns the earlier ones with them.

        Returns:
            (B, S, H).
        """
        qkv = self.qkv_proj(x_BSH).unflatten(-1, (3 * self.num_heads, self.head_dim))
        # Queries and keys are normalized and rotated alike: together they are one pass.
        qk, value = qkv.split((2 * self.num_heads, self.num_heads), dim=2)
        if self.qk_norm:
            qk = self.normalize(qk, (self.head_dim,), eps=self.norm_eps)
        query, key = rotate(qk, *rotary).chunk(2, dim=2)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        mask = _cover_unwritten_slots(mask, query, key, past_key_values, self.layer_idx)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and query.shape[2] > 1,
        )
        return self.o_proj(attended.transpose(1, 2).flatten(2))


def _cover_unwritten_slots(
    mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, cache: Cache | None, layer_idx: int
) -> torch.Tensor | None:
    """Extends the mask over slots that a fixed-size cache holds but has not written yet."""
    if cache is None:
        return mask
    query_length, slots = query.shape[2], key.shape[2]
    if mask is not None:
        return F.pad(mask, (0, slots - mask.shape[-1]), value=False)
    seen = int(cache.get_seq_length(layer_idx))
    if seen == slots:
        return None
    queries = torch.arange(seen - query_length, seen, device=query.device)[:, None]
    return (torch.arange(slots, device=query.device)[None, :] <= queries)[None, None]
