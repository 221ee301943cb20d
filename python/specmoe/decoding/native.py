"""The same steps in the native core, for models on a CPU.

Letters: B rows, H heads, N key heads, D head size.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from moe_kernels.native import core, view, view_or_none
from moe_kernels.ops.bound_linear import BoundLinear, can_bind, is_plain

from .cache import Cache
from .network import Bindable, Layer, Map, Network, Norm

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("before_attention", "after_attention", "before_mlp", "after_mlp")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Values of a row that the core takes at a time; a rotation takes both halves of a head at once.
QUANTUM = 16


def bound(network: Network, rows: int) -> Network:
    """Returns the model for batches of so many rows: what the core can do is bound to it, the rest stays as it is."""

    def of_layer(layer: Layer) -> Layer:
        maps: dict[str, Any] = {name: _linear(getattr(layer, name), rows) for name in LINEARS}
        return dataclasses.replace(layer, **maps, **{name: _norm(getattr(layer, name)) for name in NORMS})

    layers = tuple(of_layer(layer) for layer in network.layers)
    return dataclasses.replace(network, layers=layers, norm=_norm(network.norm), head=_linear(network.head, rows))


def attends(cache: Cache) -> bool:
    """Whether the core can attend to these keys and values."""
    return can_bind(*cache.layers[0]) and cache.network.head_size % (2 * QUANTUM) == 0


class NativeNorm:
    """A `Norm` in the core."""

    def __init__(self, norm: Norm) -> None:
        self._weight = norm.weight.float().contiguous()
        self._view, self._norm = view(self._weight), norm

    def __call__(self, x: Tensor, base: Tensor | None = None) -> Tensor:
        """Returns what the `Norm` does for x (B, F)."""
        if x.dtype not in DTYPES or (base is not None and base.dtype != x.dtype):
            return self._norm(x, base)
        out, x = torch.empty_like(x, memory_format=torch.contiguous_format), x.contiguous()
        base = None if base is None else base.contiguous()
        core().rms_norm(
            view(x), self._view, self._norm.eps, self._norm.rounds_first, view_or_none(base), view(out),
            torch.get_num_threads(),
        )  # fmt: skip
        return out


class NativeAttention:
    """`TorchAttention` of one new column, in the core.

    Attributes:
        cache: its keys and values.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._norms = [
            [None if norm is None else norm.weight.float().contiguous() for norm in (layer.query_norm, layer.key_norm)]
            for layer in cache.network.layers
        ]
        self._norm_views = [[view_or_none(norm) for norm in pair] for pair in self._norms]
        self._starts = cache.starts.contiguous()
        self._room = 0

    def begin(self) -> None:
        """Opens the next column."""
        columns = self.cache.open(1)
        self._column, self._positions = columns.start, self.cache.positions(columns)[:, 0].contiguous()
        if self._room != self.cache.room:
            self._room = self.cache.room
            self._views = [(view(keys), view(values)) for keys, values in self.cache.layers]
            kinds = {layer.kind for layer in self.cache.network.layers}
            self._turns = {kind: tuple(map(view, self.cache.turns(kind))) for kind in kinds}
        self._each = view(self._positions), view(self._starts)

    def __call__(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Returns what layer `n` hears (B, H·D), and keeps the keys and values; see `TorchAttention`.

        Args:
            n: the layer's number.
            q, k, v: (B, H·D), (B, N·D) and (B, N·D); q and k may be overwritten.
        """
        layer, dtype = self.cache.network.layers[n], self.cache.layers[n][0].dtype
        q, k, v = (x.to(dtype).contiguous() for x in (q, k, v))
        out = torch.empty_like(q)
        norm = layer.query_norm
        core().decode_attention(
            view(q), view(k), view(v), *self._norm_views[n],
            0.0 if norm is None else norm.eps, norm is not None and norm.rounds_first,
            *self._turns[layer.kind], *self._each, *self._views[n],
            self._column, layer.window or self._room, layer.scaling, view(out), torch.get_num_threads(),
        )  # fmt: skip
        return out


def _linear(module: Any, rows: int) -> Map:
    found: Map | None = None
    if isinstance(module, Bindable):
        found = module.bound(rows)
    elif type(module) is nn.Linear and is_plain(module):
        given = [module.weight] if module.bias is None else [module.weight, module.bias]
        found = BoundLinear(module.weight, module.bias, rows) if can_bind(*given) else None
    return module if found is None else found


def _norm(norm: Norm | None) -> Any:
    fits = norm is not None and can_bind(norm.weight) and math.prod(norm.weight.shape) % QUANTUM == 0
    return NativeNorm(norm) if norm is not None and fits else norm
