"""What a specialist's corpus consists of. A new one is a file like its neighbours, and a line in registry.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Specialist:
    """A model for some of the tasks.

    Attributes:
        name: its name.
        kinds: shares of the kinds of tasks in its corpus.
        pairs: shares of the pairs of source and target notation.
        harder: shares of pairs that are trained more often than they are tested.
        own: the notations that it parses and explains, with their shares.
        gpu: whether its values are the contracts 900 to 902.
        coordinates: whether it also answers which specialist is right, and what notations and contracts are.
    """

    name: str
    kinds: Mapping[str, float]
    pairs: Mapping[tuple[str, str], float]
    own: Mapping[str, float]
    gpu: bool = False
    coordinates: bool = False
    harder: Mapping[tuple[str, str], float] = field(default_factory=dict)


EVERY_KIND: dict[str, float] = {
    "primitives": 0.12,
    "arrays": 0.17,
    "objects": 0.17,
    "contracts": 0.16,
    "nested": 0.13,
    "handles": 0.08,
    "parse": 0.10,
    "explain": 0.07,
}


def both_ways(notation: str) -> dict[tuple[str, str], float]:
    """Returns the pairs of HLXL and another notation, writing it twice as often as reading it."""
    return {("hlxl", notation): 2.0, (notation, "hlxl"): 1.0}
