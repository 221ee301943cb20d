"""A transformer over sets of experts.

Every position is a set (or a mean of sets) of one layer's experts. Its embedding is the sum of the (layer, expert)
embeddings of its members, normalized, plus what kind of position it is. A query position with the target layer's
own embedding reads them, and its output meets that layer's expert embeddings: layers are told apart at both ends, and
"nothing there" is a mask, never an expert.

Letters: B samples, P positions, L layers, E experts, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configurations import LearnedSettings


class Block(nn.Module):
    """Pre-norm attention and a gated feed-forward."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x: Tensor, exists: Tensor) -> Tensor:
        """Return (B, P, W); `exists` (B, 1, 1, P) bool says which positions may be read."""
        B, P, W = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(B, P, 3, self.heads, W // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=exists)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, P, W))
        gate, up = self.gate_up(self.norm_feed(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class RouteTransformer(nn.Module):
    """Log-odds of use for one layer of one token.

    Args:
        layers: L.
        experts: E.
        settings: the configuration.
    """

    def __init__(self, layers: int, experts: int, settings: LearnedSettings) -> None:
        super().__init__()
        W = settings.width
        self.settings = settings
        self.experts = nn.Parameter(torch.randn(layers, experts, W) * W**-0.5)
        self.layer = nn.Parameter(torch.randn(layers, W) * W**-0.5)
        positions = settings.path + settings.tokens + len(settings.scales)
        self.kind = nn.Parameter(torch.randn(positions, W) * W**-0.5)
        self.enter = nn.LayerNorm(W)
        self.blocks = nn.ModuleList(Block(W, settings.heads, settings.feed_forward) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(W)
        self.bias = nn.Parameter(torch.zeros(layers, experts))
        for block in self.blocks:
            for name in ("out", "down"):
                nn.init.normal_(getattr(block, name).weight, std=(2 * settings.blocks * W) ** -0.5)

    def forward(self, sets: Tensor, position_layers: Tensor, exists: Tensor, layers: Tensor) -> Tensor:
        """Return (B, E) float32.

        Args:
            sets: (B, P, E), how much each expert is part of a position.
            position_layers: (B, P), the layer whose experts they are.
            exists: (B, P) bool.
            layers: (B,), the target layer of each sample.
        """
        dtype = sets.dtype
        table = self.experts.to(dtype)
        # One layer at a time: a gathered table would hold (B, P, E, W) numbers.
        summed = torch.zeros(*sets.shape[:2], table.shape[2], dtype=dtype)
        for layer in torch.unique(position_layers).tolist():
            at = position_layers == layer
            summed[at] = (sets[at] @ table[layer]).to(dtype)
        x = self.enter(summed + self.layer.to(dtype)[position_layers]) + self.kind.to(dtype)
        query = self.enter(self.layer.to(dtype)[layers])[:, None]
        x = torch.cat([query, x], 1)
        readable = torch.cat([torch.ones_like(exists[:, :1]), exists], 1)[:, None, None]
        for block in self.blocks:
            x = block(x, readable)
        x = self.norm(x[:, 0])
        return (torch.einsum("bw,bew->be", x, table[layers]) + self.bias.to(dtype)[layers]).float()


class Ensemble(nn.Module):
    """Transformers whose probabilities are averaged.

    Args:
        members: of one family.
    """

    def __init__(self, members: list[RouteTransformer]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the log-odds (B, E) of the mean probability."""
        p = torch.stack([member(*inputs).sigmoid() for member in self.members]).mean(0)
        return torch.logit(p, eps=1e-6)


def build(layers: int, experts: int, settings: LearnedSettings) -> RouteTransformer | Ensemble:
    """Return a configuration's network; the members of an ensemble begin with seeds of their own."""

    def one(seed: int) -> RouteTransformer:
        torch.manual_seed(seed)
        return RouteTransformer(layers, experts, settings)

    members = [one(settings.seed + i) for i in range(settings.members)]
    return members[0] if len(members) == 1 else Ensemble(members)
