"""Attention of prompts and of one more token of each row, in torch: on any device, and what the native step is held to.

Letters: B rows, T new columns, C columns seen, H heads, N key heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .cache import Cache
from .network import Layer


class TorchAttention:
    """What the layers hear of the columns of a cache: `begin` a pass, then ask for each layer."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def begin(self, count: int = 1) -> None:
        """Opens the next columns.

        Args:
            count: T.
        """
        self._columns = self._cache.open(count)
        self._positions = self._cache.positions(self._columns)
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._masks: dict[int | None, Tensor | None] = {}

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
        seen = slice(self._first(layer.window), self._columns.stop)
        keys, values = keys[:, :, seen], values[:, :, seen]
        mask = self._mask(layer.window)
        # One token's queries of a key head stand where several tokens have their columns: keys need not be repeated.
        q = both[:, :, :H].reshape(B, N, H // N, D) if T == 1 else both[:, :, :H].transpose(1, 2)
        heard = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=mask is None and T > 1, scale=layer.scaling, enable_gqa=T > 1
        )
        return heard.reshape(B, H * D) if T == 1 else heard.transpose(1, 2).reshape(B * T, H * D)

    def _turn(self, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns cos and sin (B, T, 1, D) of the new columns."""
        if layer.kind not in self._turns:
            cos, sin = (table[self._positions, None].to(dtype) for table in self._cache.turns(layer.kind))
            self._turns[layer.kind] = cos, sin
        return self._turns[layer.kind]

    def _first(self, window: int | None) -> int:
        """Returns the first column that a new one sees."""
        return 0 if window is None else max(0, self._columns.start + 1 - window)

    def _mask(self, window: int | None) -> Tensor | None:
        """Returns which columns each new one sees, (B, 1, T, C) bool; None where causality alone says it."""
        if window not in self._masks:
            self._masks[window] = self._seen(self._first(window), window)
        return self._masks[window]

    def _seen(self, first: int, window: int | None) -> Tensor | None:
        new, starts = self._columns, self._cache.starts
        one, all_near = new.stop - new.start == 1, window is None or new.stop - first <= window
        if not self._cache.padded and all_near and (one or new.start == 0):
            return None
        column = torch.arange(first, new.stop, device=starts.device)
        row = torch.arange(new.start, new.stop, device=starts.device)[:, None]
        near = column <= row if window is None else (column <= row) & (column > row - window)
        # Padding sees itself: what sees nothing would be NaN.
        return (near & ((column >= starts[:, None, None]) | (column == row)))[:, None]
