"""What a predictor is worth on recorded routes: accuracy, calibration, cache hits, time."""

from __future__ import annotations

from .caching import belady_scores, cache_hits, lru_scores
from .metrics import Accuracy, measure
from .replay import Replayed, replay

__all__ = ["Accuracy", "Replayed", "belady_scores", "cache_hits", "lru_scores", "measure", "replay"]
