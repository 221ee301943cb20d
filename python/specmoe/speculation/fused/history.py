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
        # What a token adds to each average: the last row is the mean's.
        self._share = np.append(1.0 - self._decays[:, 0], [[0.0]], axis=0).astype(np.float32)
        self.averages = np.zeros((len(decays) + 1, layers, experts), dtype=np.float32)
        self.since = np.full((layers, experts), LONGEST, dtype=np.float32)
        self._seen = 0

    def reset(self) -> None:
        """Begin a sequence."""
        self.averages[-1] = 0.0
        self._seen = 0

    def add(self, used: np.ndarray) -> None:
        """Take one token's use (L, E) of all layers, 1 where an expert was used."""
        moving = self.averages[:-1]
        moving += (1.0 - self._decays) * (used - moving)
        self._seen += 1
        mean = self.averages[-1]
        mean += (used - mean) / self._seen
        np.minimum(self.since + 1.0, LONGEST, out=self.since)
        self.since[used > 0] = 0.0

    def after(self, layer: int, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return averages (D + 1, E) and times since use (E,) of a layer as they will be after a token's use (E,)."""
        moving, mean = self.averages[:-1, layer], self.averages[-1, layer]
        moved = moving + (1.0 - self._decays[:, 0]) * (used - moving)
        mean = mean + (used - mean) / (self._seen + 1)
        since = np.where(used > 0, 0.0, np.minimum(self.since[layer] + 1.0, LONGEST))
        return np.concatenate([moved, mean[None]]), since

    def features_after(self, layer: int, experts: np.ndarray, weights: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Return `keep_features` of a layer as they will be after a token, in place: it is asked for at every visit.

        Args:
            layer: the layer.
            experts: (K,) distinct experts of the token, all below E.
            weights: (K,) their routing weights.
            out: (D + 3, E) float32, overwritten.
        """
        averages, since, given = out[:-2], out[-2], out[-1]
        now = self.averages[:, layer]
        given[:] = 0.0
        given[experts] = 1.0
        self._share[-1] = 1.0 / (self._seen + 1)
        np.subtract(given, now, out=averages)
        averages *= self._share
        averages += now
        averages += FLOOR
        np.log(averages, out=averages)
        np.minimum(self.since[layer] + 1.0, LONGEST, out=since)
        since[experts] = 0.0
        np.log1p(since, out=since)
        given[experts] = 2.0 * weights
        return out.reshape(-1)


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
