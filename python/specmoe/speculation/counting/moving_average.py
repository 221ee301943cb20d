"""What the layer used lately, older uses counting less.

Letters: L layers, E experts, K experts per token.
"""

from __future__ import annotations

import numpy as np

from ..calibration import RankCalibration
from ..predictor import Observation
from .membership import membership


class MovingAverage:
    """An exponential moving average of each expert's use, as a predictor and as a score for eviction.

    Args:
        layers: L.
        experts: E.
        top_k: K.
        decay: what one token leaves of the past: 0.95 remembers about the last 20 tokens.
    """

    def __init__(self, layers: int, experts: int, top_k: int, decay: float = 0.95) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"MovingAverage: decay: expected a number in (0, 1), got {decay}")
        self._calibration = RankCalibration(layers, experts, top_k)
        self._average = np.full((layers, experts), top_k / experts)
        self._seen = np.zeros(layers, dtype=bool)
        self._decay = decay

    def reset(self) -> None:
        """The averages outlive a sequence: the next one begins with what is resident."""
        self._calibration.reset()

    def observe(self, observation: Observation) -> None:
        layer, experts = observation.layer, observation.experts
        self._calibration.learn(layer, experts)
        average = self._average[layer]
        for used in membership(experts, len(average)):
            average += (1.0 - self._decay) * (used - average)
        self._seen[layer] = True

    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= len(self._average) or not self._seen[layer]:
            return None
        return self._calibration.probabilities(layer, self._average[layer][None])

    def keep(self, layer: int) -> np.ndarray | None:
        """Return (E,): the averages, as `RanksExperts` wants them."""
        return self._average[layer] if self._seen[layer] else None
