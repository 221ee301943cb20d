"""What drives a tier: the engine's pipeline sees no more of it than this, whether it holds experts or only counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from ..stats import TransferStats
from ..store import ExpertKey


class Tier(Protocol):
    """Slots for experts, and the lanes that fill them; `HostTier` says what each call does.

    Attributes:
        stats: counts since the start.
    """

    stats: TransferStats

    @property
    def reading(self) -> int: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def guided(self) -> bool: ...

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None: ...

    def demand(self, keys: Sequence[ExpertKey]) -> int: ...

    def retire(self, layer: int) -> None: ...

    def expect(self, layer: int, chances: np.ndarray) -> None: ...

    def rank(self, layer: int, worth: np.ndarray) -> None: ...

    def candidates(self, layer: int, chances: np.ndarray, ahead: int | None = None) -> list[tuple[int, float]]: ...

    def speculate(self, guesses: Iterable[tuple[ExpertKey, float]]) -> None: ...

    def wait(self, keys: Sequence[ExpertKey]) -> list[int]: ...

    def release(self, keys: Iterable[ExpertKey]) -> None: ...
