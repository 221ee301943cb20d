"""Errors of training that a user can act on."""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """A data set is missing, unreadable, or not the file it should be."""


class CheckpointError(ValueError):
    """A checkpoint is missing, incomplete, corrupt, or belongs to another run."""


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C after its state had been saved.

    Args:
        checkpoint: the checkpoint that was written on the way out.
        step: the optimizer steps done so far.
    """

    def __init__(self, checkpoint: Path, step: int) -> None:
        super().__init__(f"interrupted after step {step}; state saved in {checkpoint}")
        self.checkpoint = checkpoint
        self.step = step
