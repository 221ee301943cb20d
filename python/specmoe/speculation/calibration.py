"""From scores to probabilities, by how often each rank came true.

Letters: T tokens, E experts, K experts per token, L layers.
"""

from __future__ import annotations

import numpy as np

# How many observations the prior is worth.
PRIOR_WEIGHT = 4.0


class RankCalibration:
    """Turns scores into probabilities: P(the expert ranked r is used) is the share of past times that it was.

    Ranks compare across layers and models where raw scores do not, and counting them needs no training.

    Args:
        layers: L.
        experts: E.
        top_k: K.
    """

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        prior = np.full(experts, 0.25 * top_k / experts)
        prior[:top_k] = 0.5
        self._hits = np.tile(PRIOR_WEIGHT * prior, (layers, 1))
        self._seen = np.full(layers, PRIOR_WEIGHT)
        self._ranks: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        """Drop predictions that were never answered."""
        self._ranks.clear()

    def probabilities(self, layer: int, scores: np.ndarray) -> np.ndarray:
        """Return (E,): how likely each expert is to be used by any token.

        Args:
            layer: the layer that the scores are for; `learn` pairs the outcome by it.
            scores: (T, E), larger is likelier; T of 0 is refused.
        """
        if scores.ndim != 2 or scores.shape[0] == 0:
            raise ValueError(f"probabilities: scores: expected shape (T >= 1, E), got {scores.shape}")
        # The rank of an expert is its place in the order: the inverse of the sorting permutation.
        ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
        self._ranks[layer] = ranks
        by_rank = self._hits[layer] / self._seen[layer]
        if len(ranks) == 1:
            return by_rank[ranks[0]]
        return 1.0 - np.prod(1.0 - by_rank[ranks], axis=0)

    def learn(self, layer: int, experts: np.ndarray) -> None:
        """Count which ranks came true.

        Args:
            layer: the layer that was routed.
            experts: (T, K) chosen experts; ids of E or more are skipped.
        """
        ranks = self._ranks.pop(layer, None)
        if ranks is None or len(ranks) != len(experts):
            return
        E = ranks.shape[1]
        tokens, slots = np.nonzero(experts < E)
        np.add.at(self._hits[layer], ranks[tokens, experts[tokens, slots]], 1.0)
        self._seen[layer] += len(experts)
