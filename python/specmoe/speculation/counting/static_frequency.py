"""How often each expert was used, whatever the present.

Letters: L layers, E experts.
"""

from __future__ import annotations

import numpy as np

from ..predictor import Observation
from ..traces import RouteTrace
from .membership import membership


class StaticFrequency:
    """Each expert is as likely as it was in the past.

    Args:
        frequency: (L, E), the share of tokens that used the expert.
    """

    def __init__(self, frequency: np.ndarray) -> None:
        self._frequency = np.asarray(frequency, dtype=np.float64)

    @classmethod
    def count(cls, trace: RouteTrace) -> StaticFrequency:
        """Return the predictor that a trace's routes make."""
        L = trace.experts.shape[1]
        return cls(np.stack([membership(trace.experts[:, layer], trace.num_experts).mean(0) for layer in range(L)]))

    def reset(self) -> None:
        """Nothing belongs to a sequence here."""

    def observe(self, observation: Observation) -> None:
        """The present is not looked at."""

    def predict(self, layer: int) -> np.ndarray | None:
        return self._frequency[layer] if layer < len(self._frequency) else None
