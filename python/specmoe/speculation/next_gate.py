"""Next gate: ask the coming layer's own router, one layer early.

The residual stream changes little from one layer to the next, so the next layer's norm and gate, applied to the
current residual, already rank its experts well (Eliseev and Mazur, "Fast inference of mixture-of-experts language
models with offloading", 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .calibration import RankCalibration
from .predictor import Observation

Scorer = Callable[[Tensor], Tensor]


class NextGate:
    """Scores layer l + 1 with its own norm and gate on the residual that entered layer l.

    Args:
        scorers: for each layer, a function from the residual (T, H) to the gate's scores (T, E).
        experts: E.
        top_k: K.
    """

    def __init__(self, scorers: Mapping[int, Scorer], experts: int, top_k: int) -> None:
        self._scorers = dict(scorers)
        self._calibration = RankCalibration(max(self._scorers, default=-1) + 1, experts, top_k)
        self._current: tuple[int, Tensor] | None = None

    def reset(self) -> None:
        self._current = None
        self._calibration.reset()

    def observe(self, observation: Observation) -> None:
        self._calibration.learn(observation.layer, observation.experts)
        residual = observation.residual
        self._current = None if residual is None or not len(residual) else (observation.layer, residual)

    def predict(self, layer: int) -> np.ndarray | None:
        if self._current is None or self._current[0] + 1 != layer or layer not in self._scorers:
            return None
        with torch.no_grad():
            scores = self._scorers[layer](self._current[1])
        return self._calibration.probabilities(layer, scores.float().numpy(force=True))
