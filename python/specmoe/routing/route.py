"""What a router says of a query."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Route:
    """A router's choice.

    Attributes:
        domain: the domain, or None where the router abstains and the base should answer.
        confidence: the probability that the likeliest domain is right.
        probabilities: of every domain, sum 1.
        reasons: what in the query spoke for the likeliest domain, the strongest first.
    """

    domain: str | None
    confidence: float
    probabilities: dict[str, float]
    reasons: tuple[str, ...] = field(default=())

    def best(self, count: int = 2) -> list[tuple[str, float]]:
        """Returns the likeliest domains with weights that sum to 1, for mixing their experts."""
        chosen = sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]
        total = sum(weight for _, weight in chosen)
        return [(domain, weight / total) for domain, weight in chosen]


class Router(Protocol):
    """Chooses a domain for a query."""

    domains: tuple[str, ...]

    def route(self, text: str) -> Route:
        """Returns the choice for a query; an empty one is abstained from."""
        ...
