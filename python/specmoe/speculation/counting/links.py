"""Which experts follow which: counts that grow while a model runs.

Letters: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

import numpy as np

# The most that a chance comes to: every expert of a layer may be used by every token.
MOST = np.float32(1.0 - 1e-6)


class Links:
    """How the log-odds of a layer's experts move with each expert that was used before.

    Args:
        experts: E.
        rate: K / E, what every count begins with.
        smoothing: how many imagined tokens with average behaviour every count begins with.
    """

    def __init__(self, experts: int, rate: float, smoothing: float = 4.0) -> None:
        self._both = np.zeros((experts, experts), dtype=np.float32)
        self._before = np.zeros(experts, dtype=np.float32)
        self._after = np.full(experts, smoothing * rate, dtype=np.float32)
        self._tokens = smoothing
        self._smoothing = smoothing

    def count(self, before: np.ndarray, after: np.ndarray) -> None:
        """Take tokens' use (T, E), 1 where an expert was used, before and after."""
        if len(before) == 1:
            self._both[before[0] > 0] += after[0]
        else:
            self._both += before.T @ after
        self._before += before.sum(0)
        self._after += after.sum(0)
        self._tokens += len(before)

    def terms(self, before: np.ndarray) -> np.ndarray:
        """Return (T, E): the sums of the terms of what each token used before (T, E)."""
        rate = np.minimum(self._after / self._tokens, MOST)
        if len(before) == 1:
            chosen = before[0] > 0
            both, seen = self._both[chosen], self._before[chosen]
        else:
            both, seen = self._both, self._before
        chance = np.minimum((both + self._smoothing * rate) / (seen + self._smoothing)[:, None], MOST)
        # Smoothing keeps both away from 0.
        table = np.log(chance / (1.0 - chance)) - np.log(rate / (1.0 - rate))
        return table.sum(0, keepdims=True) if len(before) == 1 else before @ table
