"""Several predictors as one: what each says, as log-odds, weighted for each layer by how much it has been worth.

The weights are those of a logistic regression that every outcome moves along its gradient, so they adapt while a model
runs, and stay what they have become between sequences.

Letters: L layers, E experts, K experts per token, F predictors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .counting.membership import log_odds, used_by_any
from .predictor import Observation, Predictor, RanksExperts, SeesTokens

LEARNING_RATE = 0.02


class BlendedPredictor:
    """A weighted sum of log-odds, calibrated by what came true.

    Args:
        parts: F predictors; the first that can say what is worth keeping is asked for that.
        layers: L.
        experts: E.
        top_k: K; K / E is what is said of an expert that no part knows anything of.
    """

    def __init__(self, parts: Sequence[Predictor], layers: int, experts: int, top_k: int) -> None:
        if not parts:
            raise ValueError("BlendedPredictor: parts: expected at least one predictor, got none")
        self.parts = tuple(parts)
        self._base = float(log_odds(np.array(top_k / experts)))
        # Of each part beside the base rate, and a constant.
        self.weights = np.zeros((layers, len(self.parts) + 1))
        self.weights[:, :-1] = 1.0 / len(self.parts)
        self._experts = experts
        self._asked: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def reset(self) -> None:
        self._asked.clear()
        for part in self.parts:
            part.reset()

    def begin(self, tokens: np.ndarray) -> None:
        """Tell the parts that want to know them the tokens (T,) of the coming pass."""
        for part in self.parts:
            if isinstance(part, SeesTokens):
                part.begin(tokens)

    def observe(self, observation: Observation) -> None:
        asked = self._asked.pop(observation.layer, None)
        if asked is not None:
            self._learn(observation.layer, asked, used_by_any(observation.experts, self._experts))
        for part in self.parts:
            part.observe(observation)

    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= len(self.weights):
            return None
        said = [part.predict(layer) for part in self.parts]
        if all(one is None for one in said):
            return None
        signals = np.ones((self._experts, len(said) + 1))
        for f, one in enumerate(said):
            # A part that knows nothing says the base rate, so that its weight adds nothing.
            signals[:, f] = 0.0 if one is None else log_odds(one) - self._base
        chances = 1.0 / (1.0 + np.exp(-self._base - signals @ self.weights[layer]))
        self._asked[layer] = (signals, chances)
        return chances

    def keep(self, layer: int) -> np.ndarray | None:
        """Return (E,) of the first part that ranks, as `RanksExperts` wants it."""
        return next((part.keep(layer) for part in self.parts if isinstance(part, RanksExperts)), None)

    def _learn(self, layer: int, asked: tuple[np.ndarray, np.ndarray], used: np.ndarray) -> None:
        signals, chances = asked
        # A part with large log-odds moves as far as one with small ones.
        scale = 1.0 + (signals * signals).mean(0)
        self.weights[layer] += LEARNING_RATE * ((used - chances) @ signals) / scale
