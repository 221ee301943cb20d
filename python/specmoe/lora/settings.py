"""What an adapter's training is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..training.data import DOMAINS
from ..training.tuning import TuneSettings, shards_of

# All domains in one adapter, for comparison: what a domain's own adapter must beat.
MIXED = "mixed"
RANKS = range(4, 65)


@dataclass(frozen=True)
class AdapterSettings:
    """How an adapter is trained.

    Args:
        rank: of the factors, 4 to 64.
        alpha: the product is multiplied by alpha / rank; None for twice the rank.
        dropout: on the adapter's input.
        samples: records of the domain's training side at most.
        epochs: passes over them.
        batch_size: records in a step.
        learning_rate: peak learning rate.
        max_length: longer records are left out, in tokens.
        validation: records of the validation side at most.
        evaluations: evenly spaced over the run.
        precision: "float32", or "bfloat16" for autocast.
        seed: of the factors, the data and their order.
        sources: for a domain, a file or a data set of the hub in place of the default.

    Raises:
        ValueError: the rank is out of its range.
    """

    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    samples: int = 2000
    epochs: float = 3.0
    batch_size: int = 16
    learning_rate: float = 3e-3
    max_length: int = 256
    validation: int = 100
    evaluations: int = 4
    precision: str = "bfloat16"
    seed: int = 0
    sources: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank not in RANKS:
            raise ValueError(f"rank: expected {RANKS.start} to {RANKS.stop - 1}, got {self.rank}")
        for name in ("samples", "epochs", "validation", "evaluations"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {getattr(self, name)}")

    @property
    def factor(self) -> int:
        """PEFT's `lora_alpha`."""
        return 2 * self.rank if self.alpha is None else self.alpha

    def over(self, digest: str) -> dict[str, Any]:
        """Returns what `tune` does not see of an adapter's training on the base with this digest."""
        return {"base": digest, "alpha": self.factor, "dropout": self.dropout}

    def tuning(self, records: int) -> TuneSettings:
        """Returns the settings of a run over so many records.

        Args:
            records: of the training side, those that are too long left out.
        """
        steps = max(1, round(records * self.epochs / self.batch_size))
        return TuneSettings(
            steps=steps,
            batch_size=self.batch_size,
            shards=shards_of(self.batch_size),
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            eval_every=max(1, steps // self.evaluations),
            save_every=max(1, steps // (2 * self.evaluations)),
            log_every=max(1, min(20, steps // 10)),
            seed=self.seed,
            precision=self.precision,
        )


__all__ = ["DOMAINS", "MIXED", "AdapterSettings"]
