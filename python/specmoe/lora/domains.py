"""The records that adapters are trained and judged on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..training.data import DOMAINS, Record, encode_records, load_domain, split
from .settings import MIXED, AdapterSettings

Sides = dict[str, list[Record]]


def domain_sides(domain: str, sources: Mapping[str, str], seed: int) -> Sides:
    """Returns the records of a domain's train, validation and test sides; `MIXED` has those of all domains in turn.

    Raises:
        DataError: the domain is unknown, empty or unreadable.
    """
    if domain != MIXED:
        return split(load_domain(domain, sources.get(domain), seed=seed), seed=seed)
    each = [domain_sides(name, sources, seed) for name in (*DOMAINS, *(set(sources) - set(DOMAINS)))]
    return {side: _in_turn([sides[side] for sides in each]) for side in each[0]}


def encoded(sides: Sides, tokenizer: Any, settings: AdapterSettings) -> tuple[Any, Any]:
    """Returns the training and the validation records of a run, as `encode_records` gives them.

    Raises:
        DataError: no record is short enough.
    """
    rows = []
    for side, count in (("train", settings.samples), ("validation", settings.validation)):
        # Some are too long: a few more are encoded than wanted.
        found = encode_records(sides[side][: 2 * count], tokenizer, settings.max_length)
        rows.append(found.select(range(min(count, len(found)))))
    return rows[0], rows[1]


def _in_turn(lists: list[list[Record]]) -> list[Record]:
    """Returns the first of every list, then the second of every list, and so on."""
    longest = max(map(len, lists))
    return [records[i] for i in range(longest) for records in lists if i < len(records)]
