"""What the specialists answer, and how it came about."""

from __future__ import annotations

from dataclasses import dataclass

from ...routing import Route


@dataclass(frozen=True)
class Attempt:
    """One answer of one model.

    Attributes:
        specialist: who answered.
        text: what.
        sampled: whether it was drawn, and not the likeliest answer.
        verified: whether the codec found it right.
        reason: why not.
    """

    specialist: str
    text: str
    sampled: bool = False
    verified: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """The answer to a query.

    Attributes:
        query: the query.
        text: the answer, "" where there is none.
        specialist: who gave it, "" where nobody did.
        confidence: share of the attempts that say the same, 0 without an answer.
        verified: whether the codec read the answer as the value that was asked about.
        reason: why there is no answer, or why it is not verified.
        route: the router's choice.
        attempts: everything that was tried.
    """

    query: str
    text: str
    specialist: str
    confidence: float
    verified: bool
    reason: str
    route: Route
    attempts: tuple[Attempt, ...] = ()

    @property
    def abstained(self) -> bool:
        """Whether no answer was given."""
        return not self.specialist
