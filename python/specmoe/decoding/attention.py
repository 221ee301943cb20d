"""Attention of prompts and of one more token of each row, in torch: on any device, and what the native step is held to.

Letters: B rows, T new columns, H heads, N key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import Cache
from .network import Layer


class TorchAttention:
    """One pass over the layers, with `count` new columns."""

    def __init__(self, cache: Cache, count: int) -> None:
        self._cache, self._columns = cache, cache.open(count)
        self._positions = cache.positions(self._columns)
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._biases: dict[int | None, Tensor | None] = {}

    def __call__(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns what layer `n` hears, and keeps the keys and values of the new columns.

        Args:
            n: the layer's number.
            q, k, v: (B·T, H·D), (B·T, N·D) and (B·T, N·D).

        Returns:
            (B·T, H·D).
        """
        layer, (keys, values) = self._cache.network.layers[n], self._cache.layers[n]
        B, N, _, D = keys.shape
        q, k, v = (x.view(B, -1, x.shape[1] // D, D) for x in (q, k, v))
        if layer.query_norm is not None and layer.key_norm is not None:
            q, k = layer.query_norm(q), layer.key_norm(k)
        T, H = q.shape[1:3]
        cos, sin = self._turn(layer, q.dtype)
        both = torch.cat((q, k), 2)
        both = (both * cos).add_(both.roll(D // 2, -1).mul_(sin))
        keys[:, :, self._columns] = both[:, :, H:].transpose(1, 2)
        values[:, :, self._columns] = v.transpose(1, 2)
        seen = slice(self._first(layer), self._columns.stop)
        keys, values = keys[:, :, seen], values[:, :, seen]
        bias = self._bias(layer, q.dtype)
        # One token's queries of a key head stand where several tokens have their columns: keys need not be repeated.
        q = both[:, :, :H].reshape(B, N, H // N, D) if T == 1 else both[:, :, :H].transpose(1, 2)
        heard = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=bias, is_causal=bias is None and T > 1, scale=layer.scaling, enable_gqa=T > 1
        )
        return heard.reshape(B, H * D) if T == 1 else heard.transpose(1, 2).reshape(B * T, H * D)

    def _turn(self, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns cos and sin (B, T, 1, D) of the new columns."""
        if layer.kind not in self._turns:
            cos, sin = self._cache.turns(layer.kind)
            self._turns[layer.kind] = (
                cos[self._positions, None].to(dtype),
                sin[self._positions, None].to(dtype),
            )
        return self._turns[layer.kind]

    def _first(self, layer: Layer) -> int:
        """Returns the first column that a new one sees."""
        return 0 if layer.window is None else max(0, self._columns.start + 1 - layer.window)

    def _bias(self, layer: Layer, dtype: torch.dtype) -> Tensor | None:
        """Returns what is added to the scores, (B, 1, T, columns seen); None where causality alone says it."""
        if layer.window not in self._biases:
            self._biases[layer.window] = self._hidden(self._first(layer), layer.window, dtype)
        return self._biases[layer.window]

    def _hidden(self, first: int, window: int | None, dtype: torch.dtype) -> Tensor | None:
        new, starts = self._columns, self._cache.starts
        one, all_near = new.stop - new.start == 1, window is None or new.stop - first <= window
        if not self._cache.padded and all_near and (one or new.start == 0):
            return None
        column = torch.arange(first, new.stop, device=starts.device)
        row = torch.arange(new.start, new.stop, device=starts.device)[:, None]
        hidden = (column > row) | (column < starts[:, None, None])
        if window is not None:
            hidden |= column <= row - window
        # The least number and not -inf: padding sees nothing, and its row would be NaN.
        return torch.zeros(hidden.shape, dtype=dtype, device=starts.device).masked_fill_(
            hidden, torch.finfo(dtype).min
        )[:, None]
