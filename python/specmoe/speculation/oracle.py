"""The oracle: it has seen the routes before. It bounds what prediction can be worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .counting import used_by_any
from .predictor import Observation


class Oracle:
    """Gives probability 1 to what the recorded run used and 0 to the rest.

    Args:
        routes: for every forward pass, for every layer, the chosen experts (T, K).
        experts: E.
    """

    def __init__(self, routes: Sequence[Sequence[np.ndarray]], experts: int) -> None:
        self._routes = routes
        self._experts = experts
        self._visits: dict[int, int] = {}

    def reset(self) -> None:
        self._visits.clear()

    def observe(self, observation: Observation) -> None:
        self._visits[observation.layer] = self._visits.get(observation.layer, 0) + 1

    def predict(self, layer: int) -> np.ndarray | None:
        visit = self._visits.get(layer, 0)
        if visit >= len(self._routes) or layer >= len(self._routes[visit]):
            return None
        return used_by_any(self._routes[visit][layer], self._experts).astype(np.float64)
