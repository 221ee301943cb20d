"""Reading published checkpoints a tensor, or an expert, at a time."""

from __future__ import annotations

from .build import build_checkpoint_store
from .experts import ExpertGroup, ExpertSource
from .files import Checkpoint, CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "ExpertGroup", "ExpertSource", "build_checkpoint_store"]
