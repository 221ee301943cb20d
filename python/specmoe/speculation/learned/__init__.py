"""The learned family: transformers over routing history, in named configurations.

`train_learned` makes one from a trace, `LearnedPredictor` asks it.
"""

from __future__ import annotations

from .configurations import CONFIGURATIONS, LearnedSettings, configuration
from .model import Ensemble, RouteTransformer
from .predictor import LearnedPredictor, chances_of
from .training import LearnedRun, load_learned, train_learned

__all__ = [
    "CONFIGURATIONS",
    "Ensemble",
    "LearnedPredictor",
    "LearnedRun",
    "LearnedSettings",
    "RouteTransformer",
    "chances_of",
    "configuration",
    "load_learned",
    "train_learned",
]
