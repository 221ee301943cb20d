"""What the past tells before a token's first layer: moving averages and times since use.

The averages outlive a sequence, as what is resident does; the mean of the sequence begins with it.

Letters: N tokens, L layers, E experts, D decays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Added before a logarithm is taken: an average below it says nothing more.
FLOOR = 0.01
LONGEST = 1000.0


class History:
    """Running statistics of each layer's experts.

    Args:
        layers: L.
        experts: E.
        decays: what a token leaves of each average.

    Attributes:
        averages: (D + 1, L, E), the moving averages, then the mean of the sequence.
        since: (L, E), tokens since the last use.
    """

    def __init__(self, layers: int, experts: int, decays: Sequence[float]) -> None:
        self._decays = np.array(decays, dtype=np.float32)[:, None, None]
        self.averages = np.zeros((len(decays) + 1, layers, experts), dtype=np.float32)
        self.since = np.full((layers, experts), LONGEST, dtype=np.float32)
        self._seen = np.zeros(layers, dtype=np.int64)

    def reset(self) -> None:
        """Begin a sequence."""
        self.averages[-1] = 0.0
        self._seen[:] = 0

    def add(self, layer: int, used: np.ndarray) -> None:
        """Take one token's use (E,) of a layer, 1 where an expert was used."""
        self._add(slice(layer, layer + 1), used[None])

    def add_all(self, used: np.ndarray) -> None:
        """Take one token's use (L, E) of all layers."""
        self._add(slice(None), used)

    def _add(self, layers: slice, used: np.ndarray) -> None:
        moving = self.averages[:-1, layers]
        moving += (1.0 - self._decays) * (used - moving)
        self._seen[layers] += 1
        mean = self.averages[-1, layers]
        mean += (used - mean) / self._seen[layers, None]
        since = self.since[layers]
        np.minimum(since + 1.0, LONGEST, out=since)
        since[used > 0] = 0.0


def log_averages(averages: np.ndarray) -> np.ndarray:
    """Return the averages in the form that log-odds add up in."""
    return np.log(averages + FLOOR)


def keep_features(averages: np.ndarray, since: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return what the next use of each expert is estimated from.

    Args:
        averages: (D + 1, ..., E), after the token.
        since: (..., E), after the token.
        weights: (..., E), the token's own routing weights.

    Returns:
        (..., (D + 3) * E).
    """
    parts = [*log_averages(averages), np.log1p(since), 2.0 * weights]
    return np.concatenate(parts, axis=-1)
