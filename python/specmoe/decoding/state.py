"""A batch that is being continued: its prompts, and one token more of each row at a time.

Letters: B rows, S columns of the prompts, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from .attention import TorchAttention
from .cache import Cache
from .native import NativeAttention, attends, bound
from .network import Network, Norm


class Attention(Protocol):
    """What a layer hears of the columns before; see `TorchAttention`."""

    def begin(self) -> None: ...

    def __call__(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class State:
    """A batch behind its prompts; the rows are padded at the front. First `read`, then `step` as often as wanted.

    Attributes:
        network: the model, read by `network.read`. Its weights must not be replaced meanwhile.
        mask: (B, S) int64, 1 for tokens and 0 for padding.
        cache: keys and values, once the prompts are read.
    """

    def __init__(self, network: Network, mask: Tensor) -> None:
        self.network, self.mask = network, mask

    def read(self, ids: Tensor) -> Tensor:
        """Returns the logits (B, V) behind the prompts (B, S), and keeps their keys and values."""
        B, S = ids.shape
        x = self.network.embed(ids.reshape(-1))
        self.cache = Cache(self.network, self.mask, x)
        self._net = bound(self.network, B)
        self._attention: Attention = NativeAttention(self.cache) if attends(self.cache) else TorchAttention(self.cache)
        prompts = TorchAttention(self.cache)
        prompts.begin(S)
        x = _run(bound(self.network, B * S), x, prompts)
        # Of the last column alone; the head knows B rows.
        return self._net.head(self._net.norm(x.view(B, S, -1)[:, -1].contiguous()))

    def step(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, V) behind one more token of each row, (B,)."""
        self._attention.begin()
        return self._net.head(self._net.norm(_run(self._net, self._net.embed(tokens), self._attention)))


def _run(net: Network, x: Tensor, attention: Attention) -> Tensor:
    """Returns the hidden states behind all layers, of rows (N, hidden) in front of them."""
    for n, layer in enumerate(net.layers):
        h = layer.before_attention(x)
        x = _onto(x, layer.after_attention, layer.o(attention(n, layer.q(h), layer.k(h), layer.v(h))))
        h = layer.before_mlp(x)
        x = _onto(x, layer.after_mlp, layer.down(layer.act(layer.gate(h)).mul_(layer.up(h))))
    return x


def _onto(x: Tensor, norm: Norm | None, h: Tensor) -> Tensor:
    return x + h if norm is None else norm(h, x)
