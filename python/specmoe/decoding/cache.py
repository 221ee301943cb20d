"""Keys and values of a batch, and where its tokens stand.

Letters: B rows, S columns so far, N key heads, D head size, C columns that there is room for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .network import Network

# Columns that keys and values grow by: copying them is rare, and little memory waits unused.
GROWTH = 64


class Cache:
    """What a batch's next token sees of those before it; the rows are padded at the front.

    Attributes:
        length: S, the columns that are filled.
        starts: (B) int64, the first column of each row that holds a token.
        layers: keys and values (B, N, C, D) of each layer.
    """

    def __init__(self, network: Network, mask: Tensor, like: Tensor) -> None:
        """Makes room for prompts and the first tokens behind them.

        Args:
            network: the model.
            mask: (B, S) 1 for tokens and 0 for padding.
            like: of the dtype and device of keys and values.
        """
        self.network, self.length = network, 0
        self.starts = mask.shape[1] - mask.sum(1)
        self.padded = bool(self.starts.any())
        sizes = len(mask), network.key_heads, mask.shape[1] + GROWTH, network.head_size
        self.layers = [(like.new_empty(sizes), like.new_empty(sizes)) for _ in network.layers]
        self._turns: dict[str, tuple[Tensor, Tensor]] = {}
        self._make_turns()

    @property
    def room(self) -> int:
        """C."""
        return self.layers[0][0].shape[2]

    def turns(self, kind: str) -> tuple[Tensor, Tensor]:
        """Returns cos and sin (C, D) float32 of the rotary embedding by position; sin is negative in its first half."""
        return self._turns[kind]

    def open(self, count: int) -> slice:
        """Returns the next `count` columns, which become the last ones; the caller fills them."""
        first, self.length = self.length, self.length + count
        if self.length > self.room:
            self._grow(first)
        return slice(first, self.length)

    def positions(self, columns: slice) -> Tensor:
        """Returns (B, columns) int64, how many tokens of its row stand before each; 0 for padding."""
        places = torch.arange(columns.start, columns.stop, device=self.starts.device)
        return (places - self.starts[:, None]).clamp_(min=0)

    def _grow(self, filled: int) -> None:
        for n, pair in enumerate(self.layers):
            keys, values = (old.new_empty(*old.shape[:2], self.length + GROWTH, old.shape[3]) for old in pair)
            keys[:, :, :filled], values[:, :, :filled] = (old[:, :, :filled] for old in pair)
            self.layers[n] = keys, values
        self._make_turns()

    def _make_turns(self) -> None:
        positions = torch.arange(self.room, device=self.starts.device)
        half = self.network.head_size // 2
        for kind in {layer.kind for layer in self.network.layers}:
            cos, sin = (table.float() for table in self.network.rotary(positions, kind))
            self._turns[kind] = cos.contiguous(), torch.cat((-sin[:, :half], sin[:, half:]), 1)
