"""What a domain consists of: prompts with the completions that are wanted."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import xxhash

from ..errors import DataError

# The groups of the two-level router, and the domains in each.
GROUPS: dict[str, tuple[str, ...]] = {
    "analytical": ("math", "reasoning"),
    "language": ("conversation", "knowledge"),
    "technical": ("code",),
}
DOMAINS: tuple[str, ...] = ("math", "reasoning", "code", "conversation", "knowledge")
SPLITS = ("train", "validation", "test")

_BUCKETS = 10_000


@dataclass(frozen=True)
class Record:
    """One prompt and its completion.

    Attributes:
        prompt: what the user says last.
        completion: what the model should say.
        domain: one of `DOMAINS`, or a name of the user's own.
        answer: what the completion's answer is checked against; "" where there is nothing to check.
        history: earlier turns, each what the user said and what was said back.
    """

    prompt: str
    completion: str
    domain: str
    answer: str = ""
    history: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> int:
        """A number from what comes before the completion, spacing and case apart; equal prompts have equal keys."""
        turns = [turn for pair in self.history for turn in pair] + [self.prompt]
        return xxhash.xxh64_intdigest("\0".join(" ".join(turn.lower().split()) for turn in turns).encode())


def unique(records: Iterable[Record]) -> list[Record]:
    """Returns the records with the first of each prompt, in order."""
    seen: dict[int, Record] = {}
    for record in records:
        seen.setdefault(record.key, record)
    return list(seen.values())


def split(
    records: Iterable[Record], validation: float = 0.05, test: float = 0.05, seed: int = 0
) -> dict[str, list[Record]]:
    """Splits records by their prompts, so that a prompt stays on its side whatever else is in the list.

    Args:
        records: the records; of equal prompts the first is taken.
        validation, test: shares of the records, expected.
        seed: another one gives another split.

    Returns:
        The records of "train", "validation" and "test", in order.

    Raises:
        DataError: a split has no records.
    """
    sides: dict[str, list[Record]] = {name: [] for name in SPLITS}
    for record in unique(records):
        place = xxhash.xxh64_intdigest(record.key.to_bytes(8, "little"), seed) % _BUCKETS / _BUCKETS
        side = "test" if place < test else "validation" if place < test + validation else "train"
        sides[side].append(record)
    wanted = {"train": 1.0, "validation": validation, "test": test}
    for name, share in wanted.items():
        if share > 0 and not sides[name]:
            count = sum(map(len, sides.values()))
            raise DataError(f"data: expected enough records for a {name} split, got {count} different prompts")
    return sides


def shuffled(records: list[Record], limit: int | None, seed: int) -> list[Record]:
    """Returns at most `limit` of the records in an order drawn from the seed."""
    records = list(records)
    random.Random(seed).shuffle(records)
    return records[:limit]
