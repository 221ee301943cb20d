"""Accuracy of probabilities against what was used.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..counting import membership
from ..traces import RouteTrace
from .caching import lru_scores, resident_before

BINS = 20


@dataclass(frozen=True)
class Accuracy:
    """Figures by layer, (L,) each; `mean` takes layers 1 to L - 1, which have a path.

    Args:
        top1: the likeliest expert is the one with the largest weight.
        heaviest: the same, by the predictor's own opinion of it; NaN where it has none.
        recall_k: share of the experts used that were among the K likeliest.
        recall_2k: among the 2K likeliest.
        log_loss: mean cross-entropy of use, nats an expert.
        calibration: mean distance between probability and frequency over bins of probability, weighted by size.
        absent_precision: slots of an LRU cache to the share of those of the K likeliest, not resident, that were used.
        absent_recall: slots to the share of the experts used, not resident, that were among the 2K likeliest.
    """

    top1: np.ndarray
    heaviest: np.ndarray
    recall_k: np.ndarray
    recall_2k: np.ndarray
    log_loss: np.ndarray
    calibration: np.ndarray
    absent_precision: dict[int, np.ndarray]
    absent_recall: dict[int, np.ndarray]

    @staticmethod
    def mean(values: np.ndarray) -> float:
        """Return the mean of layers 1 to L - 1; of a single layer, itself."""
        return float(values[1:].mean()) if len(values) > 1 else float(values[0])


def measure(
    trace: RouteTrace,
    chances: np.ndarray,
    heaviest: np.ndarray | None = None,
    slots: tuple[int, ...] = (),
) -> Accuracy:
    """Compare probabilities with what was used.

    Args:
        trace: the routes.
        chances: (N, L, E) probabilities of use.
        heaviest: (N, L, E) probabilities of the largest weight, where the predictor has them.
        slots: sizes of an LRU cache for the figures on experts that are not resident.
    """
    N, L, K = trace.experts.shape
    E = trace.num_experts
    used = membership(trace.experts, E) > 0
    first = trace.experts[:, :, 0]
    order = np.argsort(-chances, axis=2, kind="stable")
    hit = np.take_along_axis(used, order, axis=2)
    count = np.maximum(1, used.sum((0, 2)))
    p = np.clip(chances, 1e-6, 1 - 1e-6)
    loss = -np.where(used, np.log(p), np.log1p(-p)).mean((0, 2))
    own = np.full(L, np.nan) if heaviest is None else (heaviest.argmax(2) == first).mean(0)
    precision, recall = {}, {}
    for size in slots:
        resident = resident_before(trace, size, lru_scores(trace))[1]
        likely = np.zeros((N, L, E), dtype=bool)
        np.put_along_axis(likely, order[:, :, :K], True, axis=2)
        precision[size] = (likely & ~resident & used).sum((0, 2)) / np.maximum(1, (likely & ~resident).sum((0, 2)))
        np.put_along_axis(likely, order[:, :, : 2 * K], True, axis=2)
        recall[size] = (likely & ~resident & used).sum((0, 2)) / np.maximum(1, (~resident & used).sum((0, 2)))
    return Accuracy(
        (order[:, :, 0] == first).mean(0),
        own,
        hit[:, :, :K].sum((0, 2)) / count,
        hit[:, :, : 2 * K].sum((0, 2)) / count,
        loss,
        calibration_error(chances, used),
        precision,
        recall,
    )


def calibration_error(chances: np.ndarray, used: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return (L,): the expected calibration error of (N, L, E) probabilities."""
    L = chances.shape[1]
    bin_of = np.minimum((chances * bins).astype(np.int64), bins - 1)
    errors = np.zeros(L)
    for layer in range(L):
        at = bin_of[:, layer].ravel()
        said = np.bincount(at, weights=chances[:, layer].ravel(), minlength=bins)
        true = np.bincount(at, weights=used[:, layer].ravel(), minlength=bins)
        errors[layer] = np.abs(said - true).sum() / max(1, len(at))
    return errors


def reliability(chances: np.ndarray, used: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Return what was said and what came true, (bins,) each; NaN for an empty bin."""
    at = np.minimum((chances * bins).astype(np.int64), bins - 1).ravel()
    count = np.bincount(at, minlength=bins).astype(float)
    count[count == 0] = np.nan
    said = np.bincount(at, weights=chances.ravel(), minlength=bins) / count
    return said, np.bincount(at, weights=used.ravel(), minlength=bins) / count
