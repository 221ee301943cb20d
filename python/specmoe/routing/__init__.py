"""Which domain a query belongs to: `default_router().route("What is 15 + 27?").domain`.

Two routers with one interface: `KeywordRouter`, the baseline, and `LinearRouter`, trained in seconds and calibrated.
"""

from .calibration import calibration_error
from .default import default_router
from .keywords import KeywordRouter
from .linear import LinearRouter
from .route import Route, Router
from .training import RouterSettings, train_router

__all__ = [
    "KeywordRouter",
    "LinearRouter",
    "Route",
    "Router",
    "RouterSettings",
    "calibration_error",
    "default_router",
    "train_router",
]
