"""What a specialist's training is made of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ...training.tuning import TuneSettings


@dataclass(frozen=True)
class SpecialistSettings:
    """How a specialist is trained; the defaults are the recipe of QLoRA for a model of 1.5 billion parameters.

    Args:
        rank, alpha, dropout: of the adapter, on the seven projections of every block.
        examples: of the specialist's training side.
        fillers: share of them that get other words around what they ask for, see `with_fillers`.
        epochs: passes over them.
        steps: optimizer steps in all; None for what the epochs come to.
        batch_size, accumulation: records in a forward, forwards in a step.
        shards: parts of a forward that a CPU computes side by side.
        learning_rate, warmup, weight_decay, grad_clip: the rate's peak, the share of steps in which it rises to it
            before its cosine falls; AdamW's decay; the gradient's largest norm.
        optimizer: a name that transformers knows.
        gradient_checkpointing: compute activations again in the backward pass.
        precision: "float32", or "bfloat16" for autocast.
        validation: examples of the validation side.
        evaluations: evenly spaced over the run.
        patience: evaluations without a better one before the run stops; 0 never stops it.
        max_length: longer examples are left out, in tokens.
        seed: of the adapter, the data and their order.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    examples: int = 20_000
    fillers: float = 0.0
    epochs: float = 50
    steps: int | None = None
    batch_size: int = 4
    accumulation: int = 4
    shards: int = 1
    learning_rate: float = 2e-4
    warmup: float = 0.1
    weight_decay: float = 0.01
    grad_clip: float = 0.3
    optimizer: str = "paged_adamw_8bit"
    gradient_checkpointing: bool = True
    precision: str = "bfloat16"
    validation: int = 300
    evaluations: int = 50
    patience: int = 5
    max_length: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "examples", "epochs", "validation", "evaluations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")

    def tuning(self, records: int) -> TuneSettings:
        """Returns the settings of a run over so many records."""
        steps = self.steps or max(1, math.ceil(records * self.epochs / (self.batch_size * self.accumulation)))
        return TuneSettings(
            steps=steps,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            shards=self.shards,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
            eval_every=max(1, steps // self.evaluations),
            save_every=max(1, steps // self.evaluations),
            patience=self.patience,
            log_every=max(1, min(50, steps // 10)),
            seed=self.seed,
            precision=self.precision,
            optimizer=self.optimizer,
            gradient_checkpointing=self.gradient_checkpointing,
        )


QLORA = SpecialistSettings()
# The default base has a million parameters and has seen the tasks: one forward takes the 16 records that four would,
# its activations need no second computation, a higher rate moves so small a model, and minutes have to do. It knows
# no language but the corpora's: words that say nothing teach it to look past what it does not know.
OFFLINE = dataclasses.replace(
    QLORA,
    examples=5_600,
    fillers=0.5,
    epochs=1,
    batch_size=16,
    accumulation=1,
    shards=2,
    learning_rate=2e-3,
    gradient_checkpointing=False,
    evaluations=5,
    patience=0,
)


def offline(name: str) -> SpecialistSettings:
    """Returns `OFFLINE` for a specialist: the coordinator, with twelve pairs of notations, has twice the examples."""
    return dataclasses.replace(OFFLINE, examples=2 * OFFLINE.examples) if name == "coordinator" else OFFLINE
