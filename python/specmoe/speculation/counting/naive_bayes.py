"""Naive Bayes over path, previous token and token id.

Letters: T tokens, E experts, K experts per token, L layers, N tokens of a trace.
"""

from __future__ import annotations

import numpy as np

from ..calibration import RankCalibration
from ..predictor import Observation
from ..traces import RouteTrace
from .membership import log_odds, membership
from .token_table import TokenTable


class LinkCounts:
    """Log-odds of use, plus one term for each expert that the token used in the layers before, plus one for each that
    the token before used in this layer, plus one for the token itself where its id is known (`begin`).

    Args:
        trace: routes to count, none of them from the sequences that will be predicted.
        smoothing: how many imagined tokens with average behaviour every count begins with.
        path: how many layers before are looked at; their terms are averaged over layers, since they say much the same.
    """

    def __init__(self, trace: RouteTrace, smoothing: float = 8.0, path: int = 1) -> None:
        E, (N, L, K) = trace.num_experts, trace.experts.shape
        if N == 0:
            raise ValueError("LinkCounts: trace: expected at least one token, got none")
        used = [membership(trace.experts[:, layer], E) for layer in range(L)]
        rate = np.stack([(u.sum(0) + smoothing * K / E) / (N + smoothing) for u in used])
        self._odds = log_odds(rate)
        follows = ~trace.first_tokens
        if path < 1:
            raise ValueError(f"LinkCounts: path: expected at least 1, got {path}")
        # For each layer, tables from the layers before it, the nearest first.
        self._from_path: list[list[np.ndarray]] = []
        self._from_last = []
        for layer in range(L):
            before = range(layer - 1, max(-1, layer - 1 - path), -1)
            self._from_path.append([self._terms(used[n], used[layer], rate[layer], smoothing) for n in before])
            last = used[layer][np.flatnonzero(follows) - 1]
            self._from_last.append(self._terms(last, used[layer][follows], rate[layer], smoothing))
        self._experts = E
        self._tokens = TokenTable(trace) if trace.tokens is not None else None
        self._rows: np.ndarray | None = None
        self._calibration = RankCalibration(L, E, K)
        self._last: dict[int, np.ndarray] = {}
        self._path: dict[int, np.ndarray] = {}

    @staticmethod
    def _terms(given: np.ndarray, then: np.ndarray, rate: np.ndarray, smoothing: float) -> np.ndarray:
        """Return (E, E): how the log-odds of each column's expert move when the row's expert was seen."""
        joint = given.T @ then + smoothing * rate[None]
        chance = joint / (given.sum(0)[:, None] + smoothing)
        return log_odds(chance) - log_odds(rate)[None]

    def reset(self) -> None:
        self._last.clear()
        self._path.clear()
        self._rows = None
        self._calibration.reset()

    def begin(self, tokens: np.ndarray) -> None:
        """Take note of the tokens (T,) of the coming pass."""
        if self._tokens is not None:
            self._rows = self._tokens.rows(np.asarray(tokens).reshape(-1))

    def observe(self, observation: Observation) -> None:
        layer, experts = observation.layer, observation.experts
        self._calibration.learn(layer, experts)
        known = experts[-1][experts[-1] < self._experts] if len(experts) else np.empty(0, dtype=np.int64)
        self._last[layer] = known
        if layer == 0:
            self._path.clear()
        self._path[layer] = known
        if layer == len(self._odds) - 1:
            self._rows = None

    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= len(self._odds):
            return None
        scores = self._odds[layer].copy()
        links = [
            table[self._path[layer - 1 - i]].sum(0)
            for i, table in enumerate(self._from_path[layer])
            if layer - 1 - i in self._path
        ]
        if links and layer - 1 in self._path:
            scores += sum(links) / len(links)
        if layer in self._last:
            scores += self._from_last[layer][self._last[layer]].sum(0)
        if self._tokens is not None and self._rows is not None and len(self._rows):
            scores += log_odds(self._tokens.lookup(self._rows[-1:], layer)[0]) - self._odds[layer]
        return self._calibration.probabilities(layer, scores[None])
