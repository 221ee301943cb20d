"""Predictors that count."""

from __future__ import annotations

from .links import Links
from .membership import membership, used_by_any
from .moving_average import MovingAverage
from .naive_bayes import LinkCounts
from .previous_token import PreviousToken
from .static_frequency import StaticFrequency
from .token_table import TokenTable

__all__ = [
    "LinkCounts",
    "Links",
    "MovingAverage",
    "PreviousToken",
    "StaticFrequency",
    "TokenTable",
    "membership",
    "used_by_any",
]
