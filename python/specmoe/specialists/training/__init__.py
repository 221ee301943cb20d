"""Training of the specialists: `train_specialist("runic", prepare_family(folder, None), settings)`."""

from __future__ import annotations

from .prepare import prepare_family
from .settings import OFFLINE, QLORA, SpecialistSettings, offline
from .train import SpecialistReport, train_specialist

__all__ = [
    "OFFLINE",
    "QLORA",
    "SpecialistReport",
    "SpecialistSettings",
    "offline",
    "prepare_family",
    "train_specialist",
]
