"""What an evaluation has found, as numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..corpora import Example

# Who answers: a model by itself, the system that verifies and may abstain, or the codec, which is no model.
ALONE, VERIFIED, CODEC = "model alone", "with verification", "codec (tool)"


@dataclass
class Tally:
    """Counts of one group of cases.

    Attributes:
        cases: how many there are.
        given: how many were answered; a model alone always answers.
        right: how many answers are right.
    """

    cases: int = 0
    given: int = 0
    right: int = 0

    def add(self, given: bool, right: bool) -> None:
        """Counts one case."""
        self.cases += 1
        self.given += given
        self.right += given and right

    @property
    def exact(self) -> float:
        """Share of the cases that were answered right."""
        return self.right / max(1, self.cases)

    @property
    def coverage(self) -> float:
        """Share of the cases that were answered."""
        return self.given / max(1, self.cases)

    @property
    def precision(self) -> float:
        """Share of the answers that are right; 1 where none was given."""
        return self.right / self.given if self.given else 1.0

    def told(self) -> dict[str, float]:
        """Returns counts and shares for the report."""
        shares = {"exact": self.exact, "coverage": self.coverage, "precision": self.precision}
        return {"cases": self.cases, "given": self.given, "right": self.right, **shares}


@dataclass
class Evaluation:
    """What was found on held-out cases.

    Attributes:
        tallies: for each way of answering, each specialist and each group: a kind of task, a pair of notations
            ("hlxl to lc-r"), or "all".
        texts: of each specialist's explanations and routing questions, the model alone, by kind.
        loss: of each specialist on its cases, nats per labelled token.
        routing: for each router, the share of all cases for which it named the right specialist.
        wrong: some conversions that the models alone got wrong, for reading.
        figures: sizes, memory, speed and settings.
    """

    tallies: dict[str, dict[str, dict[str, Tally]]] = field(default_factory=dict)
    texts: dict[str, dict[str, Tally]] = field(default_factory=dict)
    loss: dict[str, float] = field(default_factory=dict)
    routing: dict[str, float] = field(default_factory=dict)
    wrong: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def count(self, way: str, name: str, example: Example, given: bool, right: bool) -> None:
        """Counts a conversion in its groups."""
        groups = self.tallies.setdefault(way, {}).setdefault(name, defaultdict(Tally))
        for group in ("all", example.kind, f"{example.source} to {example.target}"):
            groups[group].add(given, right)

    def total(self, way: str, names: Iterable[str] | None = None) -> Tally:
        """Returns the counts of a way of answering over specialists; None for all of them."""
        found = [groups["all"] for name, groups in self.tallies[way].items() if names is None or name in names]
        return Tally(*(sum(getattr(tally, part) for tally in found) for part in ("cases", "given", "right")))

    def told(self) -> dict[str, Any]:
        """Returns everything as JSON values."""
        ways = {
            way: {
                "total": self.total(way).told(),
                **{name: {group: tally.told() for group, tally in groups.items()} for name, groups in each.items()},
            }
            for way, each in self.tallies.items()
        }
        texts = {name: {kind: tally.told() for kind, tally in kinds.items()} for name, kinds in self.texts.items()}
        return {
            "figures": self.figures,
            "conversions": ways,
            "explanations and routing questions, model alone": texts,
            "loss, nats per token": self.loss,
            "routing accuracy": self.routing,
            "wrong, model alone": self.wrong,
        }
