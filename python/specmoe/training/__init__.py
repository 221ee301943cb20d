"""Training of the MoE transformer: `train(TrainSettings(...))`, or `train(preset("cpu"))`.

`TrainSettings` and `preset` need neither torch nor transformers; `train` loads them when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import CheckpointError, DataError, TrainingInterrupted
from .settings import PRESETS, TrainSettings, preset

if TYPE_CHECKING:
    from .run import TrainResult, train

__all__ = [
    "PRESETS",
    "CheckpointError",
    "DataError",
    "TrainResult",
    "TrainSettings",
    "TrainingInterrupted",
    "preset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in ("TrainResult", "train"):
        from . import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
