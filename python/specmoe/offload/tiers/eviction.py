"""Which resident expert goes when a slot is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from ..store import ExpertKey


class EvictionPolicy(Protocol):
    """Orders resident experts; the tier walks the order and takes the first that nobody holds."""

    def insert(self, key: ExpertKey) -> None:
        """An expert became resident."""

    def touch(self, key: ExpertKey) -> None:
        """A resident expert was used."""

    def demote(self, key: ExpertKey) -> None:
        """A resident expert was loaded on a guess that proved wrong: let it go first."""

    def remove(self, key: ExpertKey) -> None:
        """An expert is resident no more."""

    def order(self) -> Iterator[ExpertKey]:
        """Yield the resident experts, the first to go first."""


class LRU:
    """Least recently used goes first."""

    def __init__(self) -> None:
        self._keys: OrderedDict[ExpertKey, None] = OrderedDict()

    def insert(self, key: ExpertKey) -> None:
        self._keys[key] = None
        self._keys.move_to_end(key)

    def touch(self, key: ExpertKey) -> None:
        self._keys.move_to_end(key)

    def demote(self, key: ExpertKey) -> None:
        self._keys.move_to_end(key, last=False)

    def remove(self, key: ExpertKey) -> None:
        del self._keys[key]

    def order(self) -> Iterator[ExpertKey]:
        return iter(self._keys)
