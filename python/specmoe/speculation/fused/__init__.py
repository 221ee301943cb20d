"""The fused predictor: every signal that routing has, in one small calibrated network.

`train_fused` makes the weights from a trace, `FusedPredictor` asks them, one layer at a time, in NumPy.
"""

from __future__ import annotations

from .predictor import FusedPredictor
from .settings import FusedSettings
from .training import train_fused
from .weights import FusedWeights

__all__ = ["FusedPredictor", "FusedSettings", "FusedWeights", "train_fused"]
