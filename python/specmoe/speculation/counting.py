"""Predictors that count.

Letters: T tokens, E experts, K experts per token, L layers, N tokens of a trace.
"""

from __future__ import annotations

import numpy as np

from .calibration import RankCalibration
from .predictor import Observation
from .traces import RouteTrace


def used_by_any(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Return (E,) bool: which experts appear in (..., K); ids of E or more are "none"."""
    counts = np.bincount(experts.reshape(-1), minlength=num_experts)
    return counts[:num_experts] > 0


def membership(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Return (N, E) float32 from (N, K): 1 where the token uses the expert."""
    table = np.zeros((len(experts), num_experts), dtype=np.float32)
    np.put_along_axis(table, experts.astype(np.int64), 1.0, axis=1)
    return table


class StaticFrequency:
    """Each expert is as likely as it was in the past, whatever the present.

    Args:
        frequency: (L, E), the share of tokens that used the expert.
    """

    def __init__(self, frequency: np.ndarray) -> None:
        self._frequency = np.asarray(frequency, dtype=np.float64)

    def reset(self) -> None:
        """Nothing belongs to a sequence here."""

    def observe(self, observation: Observation) -> None:
        """The present is not looked at."""

    def predict(self, layer: int) -> np.ndarray | None:
        return self._frequency[layer] if layer < len(self._frequency) else None


class PreviousToken:
    """The experts that the layer used last time will be used again, as often as they were so far.

    Args:
        layers: L.
        experts: E.
        top_k: K.
    """

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._experts = experts
        self._calibration = RankCalibration(layers, experts, top_k)
        self._last: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        self._last.clear()
        self._calibration.reset()

    def observe(self, observation: Observation) -> None:
        layer, experts = observation.layer, observation.experts
        self._calibration.learn(layer, experts)
        self._last[layer] = experts[-1:]

    def predict(self, layer: int) -> np.ndarray | None:
        last = self._last.get(layer)
        if last is None or not last.size:
            return None
        # The order of the last choice is kept: its first expert carried the largest weight.
        scores = np.zeros((1, self._experts + 1))
        scores[0, np.minimum(last[0], self._experts)] = np.arange(last.shape[1], 0, -1)
        return self._calibration.probabilities(layer, scores[:, :-1])


class LinkCounts:
    """Naive Bayes over what the path has shown: log-odds of use, plus one term for each expert that the token used in
    the layer before, plus one for each that the token before used in this layer.

    Args:
        trace: routes to count, none of them from the sequences that will be predicted.
        smoothing: how many imagined tokens with average behaviour every count begins with.
    """

    def __init__(self, trace: RouteTrace, smoothing: float = 8.0) -> None:
        E, (N, L, K) = trace.num_experts, trace.experts.shape
        if N == 0:
            raise ValueError("LinkCounts: trace: expected at least one token, got none")
        used = [membership(trace.experts[:, layer], E) for layer in range(L)]
        rate = np.stack([(u.sum(0) + smoothing * K / E) / (N + smoothing) for u in used])
        self._odds = _log_odds(rate)
        follows = np.ones(N, dtype=bool)
        follows[trace.starts[:-1]] = False
        self._from_path = [np.zeros((E, E))]
        self._from_last = []
        for layer in range(L):
            if layer:
                self._from_path.append(self._terms(used[layer - 1], used[layer], rate[layer], smoothing))
            last = used[layer][np.flatnonzero(follows) - 1]
            self._from_last.append(self._terms(last, used[layer][follows], rate[layer], smoothing))
        self._experts = E
        self._calibration = RankCalibration(L, E, K)
        self._last: dict[int, np.ndarray] = {}
        self._path: tuple[int, np.ndarray] | None = None

    @staticmethod
    def _terms(given: np.ndarray, then: np.ndarray, rate: np.ndarray, smoothing: float) -> np.ndarray:
        """Return (E, E): how the log-odds of each column's expert move when the row's expert was seen."""
        joint = given.T @ then + smoothing * rate[None]
        chance = joint / (given.sum(0)[:, None] + smoothing)
        return _log_odds(chance) - _log_odds(rate)[None]

    def reset(self) -> None:
        self._last.clear()
        self._path = None
        self._calibration.reset()

    def observe(self, observation: Observation) -> None:
        layer, experts = observation.layer, observation.experts
        self._calibration.learn(layer, experts)
        known = experts[-1][experts[-1] < self._experts] if len(experts) else np.empty(0, dtype=np.int64)
        self._last[layer] = known
        self._path = (layer, known)

    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= len(self._odds):
            return None
        scores = self._odds[layer].copy()
        if self._path is not None and self._path[0] + 1 == layer:
            scores += self._from_path[layer][self._path[1]].sum(0)
        if layer in self._last:
            scores += self._from_last[layer][self._last[layer]].sum(0)
        return self._calibration.probabilities(layer, scores[None])


def _log_odds(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)
