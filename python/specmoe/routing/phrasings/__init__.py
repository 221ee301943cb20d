"""Prompts of the five domains, written for the trained router: patterns with slots, one a line.

`math.txt` has what is usual; `math_disguised.txt` also what sounds like another domain, and so on.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(\w+)\}")


@cache
def patterns(domain: str) -> tuple[str, ...]:
    """Returns the patterns of a domain.

    Raises:
        FileNotFoundError: there are none for this name.
    """
    return tuple(dict.fromkeys(_lines(domain) + _lines(f"{domain}_disguised")))


def expand(domain: str, each: int, seed: int) -> Iterator[tuple[int, str]]:
    """Yields prompts with their pattern's place: each pattern filled `each` times, once where it has no slots."""
    draw = random.Random(f"phrasings {domain} {seed}")
    for place, pattern in enumerate(patterns(domain)):
        for _ in range(each if _SLOT.search(pattern) else 1):
            yield place, _fill(pattern, draw)


def _fill(pattern: str, draw: random.Random) -> str:
    # A value may have slots of its own.
    while _SLOT.search(pattern):
        pattern = _SLOT.sub(lambda slot: draw.choice(_slots()[slot[1]]), pattern)
    return pattern


@cache
def _slots() -> dict[str, tuple[str, ...]]:
    slots = {}
    for line in _lines("slots"):
        name, _, values = line.partition(": ")
        slots[name] = tuple(values.split("|") if "|" in values else values.split())
    return slots


def _lines(name: str) -> list[str]:
    text = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line]
