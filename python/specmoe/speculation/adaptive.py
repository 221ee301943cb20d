"""A predictor that nobody has trained: it counts while it runs, and learns online how much each count is worth.

Signals, as log-odds: what the layer before used (links), what this layer used for the token before, moving averages,
and the coming layer's own gate where residuals are known. A logistic regression for each layer, moved along its
gradient by every outcome, weighs them. What is worth keeping is the longer moving average.

Letters: T tokens of a pass, L layers, E experts, K experts per token, F signals.
"""

from __future__ import annotations

import numpy as np

from .counting.links import Links
from .counting.membership import any_of, log_odds, membership
from .next_gate import NextGate
from .predictor import Observation

DECAYS = (0.8, 0.95)
# How much each signal is trusted before anything was learned: averages, links, previous token, gate, constant.
START = (0.3, 0.6, 0.6, 0.4, 0.9, 0.0)
LEARNING_RATE = 0.05
# An average below it says nothing more.
FLOOR = 0.003
# Of the tokens of a long pass, the last ones are learned from.
MOST_TOKENS = 64


class AdaptivePredictor:
    """The fused predictor's simple relative, for a model whose routes were never recorded.

    Args:
        layers: L.
        experts: E.
        top_k: K.
        gate: the next gate, where the model's routers can be asked.
    """

    def __init__(self, layers: int, experts: int, top_k: int, gate: NextGate | None = None) -> None:
        self._gate = gate
        rate = top_k / experts
        self._base = float(log_odds(np.array(rate)))
        self._averages = np.full((len(DECAYS), layers, experts), rate)
        self._decays = np.array(DECAYS)[:, None]
        self._path = [Links(experts, rate) for _ in range(layers)]
        self._past = [Links(experts, rate) for _ in range(layers)]
        self._weights = np.tile(np.array(START), (layers, 1))
        self._visits = np.zeros(layers, dtype=np.int64)
        self._experts = experts
        self._last: dict[int, np.ndarray] = {}
        self._latest: tuple[int, np.ndarray] | None = None
        self._asked: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def reset(self) -> None:
        """Forget the token before; counts and weights stay."""
        self._last.clear()
        self._asked.clear()
        self._latest = None
        if self._gate is not None:
            self._gate.reset()

    def observe(self, observation: Observation) -> None:
        layer = observation.layer
        if layer >= len(self._visits) or not len(observation.experts):
            return
        if self._gate is not None:
            self._gate.observe(observation)
        experts = observation.experts[-MOST_TOKENS:]
        used = membership(experts, self._experts)
        self._learn(layer, used)
        if self._latest is not None and self._latest[0] != layer and len(self._latest[1]) == len(used):
            self._path[layer].count(self._latest[1], used)
        if layer in self._last:
            self._past[layer].count(np.concatenate([self._last[layer], used[:-1]]), used)
        elif len(used) > 1:
            self._past[layer].count(used[:-1], used[1:])
        average = self._averages[:, layer]
        for row in used:
            average += (1.0 - self._decays) * (row - average)
        self._last[layer] = used[-1:]
        self._latest = (layer, used)
        self._visits[layer] += 1

    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= len(self._visits) or not self._visits[layer] or self._latest is None:
            return None
        source, used = self._latest
        signals = self._signals(layer, used[-1:] if source == layer else used, source == layer)
        z = signals @ self._weights[layer]
        chances = 1.0 / (1.0 + np.exp(-self._base - z))
        if source != layer:
            self._asked[layer] = (signals, chances)
        return any_of(chances)

    def keep(self, layer: int) -> np.ndarray | None:
        """Return (E,): the longer averages, as `RanksExperts` wants them."""
        return self._averages[1, layer] if layer < len(self._visits) and self._visits[layer] else None

    def _signals(self, layer: int, used: np.ndarray, again: bool) -> np.ndarray:
        """Return (T, E, F); what the layer itself just used is the token before, if the next token is asked about."""
        T = len(used)
        signals = np.zeros((T, self._experts, len(START)))
        averages = FLOOR + (1.0 - 2.0 * FLOOR) * self._averages[:, layer]
        averages = np.log(averages / (1.0 - averages)) - self._base
        signals[..., 0], signals[..., 1] = averages[0], averages[1]
        if not again:
            signals[..., 2] = self._path[layer].terms(used)
        if layer in self._last:
            # Of all tokens of a pass, only the first one's predecessor is known.
            signals[0, :, 3] = self._past[layer].terms(self._last[layer])[0]
        if self._gate is not None and not again and (said := self._gate.predict(layer)) is not None:
            signals[..., 4] = log_odds(said) - self._base
        signals[..., 5] = 1.0
        return signals

    def _learn(self, layer: int, used: np.ndarray) -> None:
        """Move a layer's weights along the gradient of the cross-entropy of what was asked about it."""
        asked = self._asked.pop(layer, None)
        if asked is None or len(asked[0]) != len(used):
            return
        signals, chances = asked
        error = (used - chances).reshape(-1)
        rows = signals.reshape(-1, signals.shape[-1])
        scale = len(used) + (rows * rows).sum(0) / self._experts
        self._weights[layer] += LEARNING_RATE * (error @ rows) / scale
