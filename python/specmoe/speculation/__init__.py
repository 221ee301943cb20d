"""Which experts will be wanted next, and which of those are worth loading ahead.

This package sees layers, experts, scores and seconds; it knows nothing of files or devices.
"""

from __future__ import annotations

from .adaptive import AdaptivePredictor
from .blended import BlendedPredictor
from .calibration import RankCalibration
from .cost_gate import CostGate
from .counting import LinkCounts, MovingAverage, PreviousToken, StaticFrequency, TokenTable
from .next_gate import NextGate
from .oracle import Oracle
from .predictor import Observation, Predictor, RanksExperts, SeesTokens
from .traces import RouteTrace, load_routes, record_trace, save_routes

__all__ = [
    "AdaptivePredictor",
    "BlendedPredictor",
    "CostGate",
    "LinkCounts",
    "MovingAverage",
    "NextGate",
    "Observation",
    "Oracle",
    "Predictor",
    "PreviousToken",
    "RankCalibration",
    "RanksExperts",
    "RouteTrace",
    "SeesTokens",
    "StaticFrequency",
    "TokenTable",
    "load_routes",
    "record_trace",
    "save_routes",
]
