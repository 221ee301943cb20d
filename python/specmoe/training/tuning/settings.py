"""What a tuning run is made of."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("float32", "bfloat16")
# These say how long a run goes on and what is kept of it, and not what a step computes.
_FREE = ("eval_every", "save_every", "keep_checkpoints", "log_every", "patience")


@dataclass(frozen=True)
class TuneSettings:
    """One tuning run.

    Args:
        steps: optimizer steps in all.
        batch_size: records in a forward.
        accumulation: forwards in a step.
        shards: parts of a forward's records that a CPU computes side by side, see `ShardedStep`.
        learning_rate: peak learning rate; a cosine to zero follows the warmup.
        warmup: share of the steps in which the rate rises.
        weight_decay: AdamW's decay of matrices other than embeddings.
        grad_clip: largest norm of the whole gradient.
        eval_every: steps between evaluations on all validation records; one more follows the last step.
        save_every: steps between checkpoints; 0 saves only where an evaluation was the best so far.
        keep_checkpoints: how many of the newest checkpoints are kept; the best is kept besides.
        patience: evaluations without a better one before the run stops; 0 never stops it.
        log_every: steps between lines of the history.
        seed: of the order of the records and of dropout.
        precision: "float32", or "bfloat16" for autocast.
        optimizer: a name that transformers' `TrainingArguments(optim=...)` knows.
        gradient_checkpointing: compute activations again in the backward pass.

    Raises:
        ValueError: a value is out of its range; the message names it, what was expected and what came.
    """

    steps: int
    batch_size: int = 16
    accumulation: int = 1
    shards: int = 1
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    eval_every: int = 100
    save_every: int = 0
    keep_checkpoints: int = 1
    patience: int = 0
    log_every: int = 20
    seed: int = 0
    precision: str = "float32"
    optimizer: str = "adamw_torch_fused"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "shards", "eval_every", "keep_checkpoints", "log_every"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        parts = f"a divisor of the {self.batch_size} records of a batch"
        _require(self.batch_size % self.shards == 0, "shards", parts, self.shards)
        # What is computed again in the backward pass would draw other random numbers; a sum of more than two gradients
        # depends on their order.
        alone = self.shards == 1 or (self.accumulation == 1 and not self.gradient_checkpointing)
        _require(alone, "shards", "1 with accumulation or gradient_checkpointing", self.shards)
        for name in ("save_every", "patience", "weight_decay"):
            _require(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in ("learning_rate", "grad_clip"):
            _require(getattr(self, name) > 0, name, "more than 0", getattr(self, name))
        _require(0 <= self.warmup < 1, "warmup", "a share from 0 to below 1", self.warmup)
        _require(self.precision in PRECISIONS, "precision", f"one of {', '.join(PRECISIONS)}", self.precision)

    def run_defining(self) -> dict[str, Any]:
        """Returns the settings that a resumed run must share with the run that it continues."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _FREE}


def shards_of(batch_size: int) -> int:
    """Returns in how many parts a batch of any size is computed: two where it can be halved."""
    return 2 if batch_size % 2 == 0 else 1


def _require(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")
