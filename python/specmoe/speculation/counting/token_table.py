"""Which experts each token of the vocabulary used.

Letters: N tokens, L layers, E experts, K experts per token, V distinct tokens.
"""

from __future__ import annotations

import numpy as np

from ..predictor import Observation
from ..traces import RouteTrace
from .membership import any_of, membership


class TokenTable:
    """Each expert is as likely as it was for the same token in the past, drawn towards its frequency for rare ones.

    Args:
        trace: routes to count, with token ids.
        smoothing: how many imagined tokens with average behaviour every token begins with.

    Raises:
        ValueError: the trace has no token ids.
    """

    def __init__(self, trace: RouteTrace, smoothing: float = 2.0) -> None:
        if trace.tokens is None or not len(trace.tokens):
            raise ValueError("TokenTable: trace: expected token ids, got a trace without")
        N, L, _ = trace.experts.shape
        self._known, of_token = np.unique(trace.tokens, return_inverse=True)
        used = membership(trace.experts, trace.num_experts).reshape(N, -1)
        self._rate = used.mean(0).reshape(L, -1)
        sums = np.zeros((len(self._known), used.shape[1]), dtype=np.float32)
        np.add.at(sums, of_token, used)
        counts = np.bincount(of_token)[:, None].astype(np.float32)
        table = (sums + smoothing * self._rate.reshape(1, -1)) / (counts + smoothing)
        self._table = table.astype(np.float16).reshape(len(counts), L, -1)
        self._rows: np.ndarray | None = None

    def rows(self, tokens: np.ndarray) -> np.ndarray:
        """Return (T,): each token's row of the table, -1 for one that was never seen."""
        at = np.minimum(np.searchsorted(self._known, tokens), len(self._known) - 1)
        return np.where(self._known[at] == tokens, at, -1)

    def lookup(self, rows: np.ndarray, layer: int) -> np.ndarray:
        """Return (T, E) probabilities of a layer for rows of the table."""
        return np.where(rows[:, None] >= 0, self._table[rows, layer].astype(np.float64), self._rate[layer])

    def reset(self) -> None:
        self._rows = None

    def begin(self, tokens: np.ndarray) -> None:
        """Take note of the tokens (T,) of the coming pass."""
        self._rows = self.rows(np.asarray(tokens).reshape(-1))

    def observe(self, observation: Observation) -> None:
        """After the last layer, nothing is known of the next token."""
        if observation.layer == len(self._rate) - 1:
            self._rows = None

    def predict(self, layer: int) -> np.ndarray | None:
        if self._rows is None or not len(self._rows) or layer >= len(self._rate):
            return None
        return any_of(self.lookup(self._rows, layer))
