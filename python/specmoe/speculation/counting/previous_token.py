"""What the layer used last time.

Letters: L layers, E experts, K experts per token.
"""

from __future__ import annotations

import numpy as np

from ..calibration import RankCalibration
from ..predictor import Observation


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
