"""Keys, values and positions of a batch that is being continued, and one step of it.

Letters: B rows, S columns so far, H heads, N key heads, D head size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .network import Layer, Network

# Columns that keys and values grow by: copying them is rare, and little memory waits unused.
GROWTH = 64


class State:
    """A batch behind its prompts; the rows are padded at the front.

    Attributes:
        length: S, the columns that are filled.
    """

    def __init__(self, model: Any, network: Network, mask: Tensor) -> None:
        """Makes an empty state.

        Args:
            model: of transformers, which reads the prompts.
            network: the same model, read by `network.read`.
            mask: (B, S) 1 for tokens and 0 for padding.
        """
        self.model, self.network = model, network
        self.mask = mask
        self.length = mask.shape[1]
        self._next = mask.sum(1)
        # What is added to the scores of padding; nothing where there is none.
        self._bias: Tensor | None = None
        self._cache: list[tuple[Tensor, Tensor]] = []
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}

    def read(self, ids: Tensor) -> Tensor:
        """Returns the logits (B, V) behind the prompts (B, S), and keeps their keys and values."""
        from transformers import DynamicCache

        # Without the configuration the cache keeps what lies before the window too, which is cut at each step.
        cache: Any = DynamicCache()
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        inner = self.model.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        # Of its own memory: given a slice of all states, torch would copy the head's weight for each row.
        logits = self.network.head(inner.last_hidden_state[:, -1].contiguous())
        for n in range(len(self.network.layers)):
            self._cache.append((cache.layers[n].keys, cache.layers[n].values))
        if not bool(self.mask.all()):
            least = torch.finfo(logits.dtype).min
            self._bias = ((1 - self.mask) * least).to(self._cache[0][0].dtype)[:, None, None]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, V) behind one more token of each row, (B,)."""
        if self.length == self._cache[0][0].shape[2]:
            self._grow()
        at, net = self.length, self.network
        self.length += 1
        turns = {kind: (cos[self._next, None], sin[self._next, None]) for kind, (cos, sin) in self._turns.items()}
        x = net.embed(tokens)
        for layer, (keys, values) in zip(net.layers, self._cache, strict=True):
            heard = self._attend(layer, layer.before_attention(x), keys, values, at, turns[layer.kind])
            x = x + (heard if layer.after_attention is None else layer.after_attention(heard))
            h = layer.before_mlp(x)
            h = layer.down(layer.act(layer.gate(h)).mul_(layer.up(h)))
            x = x + (h if layer.after_mlp is None else layer.after_mlp(h))
        self._next = self._next + 1
        return net.head(net.norm(x))

    def _attend(
        self, layer: Layer, h: Tensor, keys: Tensor, values: Tensor, at: int, turn: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Returns what the layer adds for (B, hidden), and writes its key and value into column `at`."""
        net, B = self.network, len(h)
        H, N, D = net.heads, net.key_heads, net.head_size
        q, k = layer.q(h).view(B, H, D), layer.k(h).view(B, N, D)
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = layer.query_norm(q), layer.key_norm(k)
        both = torch.cat((q, k), 1)
        cos, sin = turn
        # `sin` carries the sign of the half that is turned.
        both = (both * cos).add_(both.roll(D // 2, -1).mul_(sin))
        keys[:, :, at] = both[:, H:]
        values[:, :, at] = layer.v(h).view(B, N, D)
        first = 0 if layer.window is None else max(0, at + 1 - layer.window)
        seen = slice(first, at + 1)
        bias = None if self._bias is None else self._bias[..., seen]
        # The queries of a key head stand where transformers has the tokens of a sequence: keys need not be repeated.
        heard = F.scaled_dot_product_attention(
            both[:, :H].reshape(B, N, H // N, D), keys[:, :, seen], values[:, :, seen],
            attn_mask=bias, scale=layer.scaling,
        )  # fmt: skip
        return layer.o(heard.reshape(B, H * D))

    def _grow(self) -> None:
        """Makes room for more columns, layer by layer."""
        for n, (keys, values) in enumerate(self._cache):
            self._cache[n] = (F.pad(keys, (0, 0, 0, GROWTH)), F.pad(values, (0, 0, 0, GROWTH)))
        if self._bias is not None:
            self._bias = F.pad(self._bias, (0, GROWTH))
        positions = torch.arange(self.length + GROWTH, device=self.mask.device)
        half = self.network.head_size // 2
        for kind in {layer.kind for layer in self.network.layers}:
            cos, sin = self.network.rotary(positions, kind)
            self._turns[kind] = (cos, torch.cat((-sin[:, :half], sin[:, half:]), 1))
