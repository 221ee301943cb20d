"""Confidence that means what it says: temperature, expected calibration error, and when to abstain."""

from __future__ import annotations

import numpy as np


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature with the smallest cross-entropy (Guo et al. 2017).

    Args:
        logits: (queries, domains).
        labels: (queries) the right domain of each.
    """
    grid = np.geomspace(0.05, 20.0, 241)
    return float(min(grid, key=lambda temperature: _cross_entropy(logits / temperature, labels)))


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error: |accuracy - confidence| in bins of equal width, weighted by queries.

    Args:
        confidence: (queries) probability of the chosen domain.
        right: (queries) whether it was right.
        bins: number of bins over [0, 1].
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[place == b].mean() - confidence[place == b].mean()) * (place == b).mean() for b in set(place)]
    return float(sum(gaps))


def abstention_threshold(confidence: np.ndarray, right: np.ndarray, precision: float) -> float:
    """Returns the smallest confidence from which on choices are right at least this often, 0 where all are.

    Args:
        confidence: (queries) probability of the chosen domain.
        right: (queries) whether it was right.
        precision: the share of right choices that is wanted.
    """
    order = np.argsort(-confidence)
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= precision)
    if not len(enough) or enough[-1] == len(order) - 1:
        return 0.0
    return float(confidence[order][enough[-1]])


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]).mean())
