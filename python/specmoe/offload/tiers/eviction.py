"""Which resident expert goes when a slot is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

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

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """A layer uses these experts (T, K) now; it is told before their slots are asked for."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """A predictor gives each expert (E,) of a layer that was just routed this chance to be used there next."""


class LRU:
    """Least recently used goes first."""

    # Whether `expect` is worth calling.
    guided = False

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

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """The order of use says all."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """The order of use says all."""


class Valued:
    """Base of policies that give every expert a value: the lowest goes first, of equals the least recently used.

    What is known of an expert outlives its stay: an expert that comes back has its history.

    Args:
        layers: L, or fewer: the tables grow.
        experts: E, or fewer.
    """

    guided = False

    def __init__(self, layers: int = 1, experts: int = 1) -> None:
        self._clock = 0
        self._values = np.zeros((layers, experts))
        self._used = np.zeros((layers, experts), dtype=np.int64)
        self._resident = np.zeros((layers, experts), dtype=bool)
        self._demoted = np.zeros((layers, experts), dtype=bool)

    def insert(self, key: ExpertKey) -> None:
        self._fit(key.layer, key.expert)
        self._resident[key], self._demoted[key] = True, False
        self.touch(key)

    def touch(self, key: ExpertKey) -> None:
        self._clock += 1
        self._used[key], self._demoted[key] = self._clock, False

    def demote(self, key: ExpertKey) -> None:
        self._demoted[key] = True

    def remove(self, key: ExpertKey) -> None:
        self._resident[key] = False

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """Values are a matter of the class."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """Values are a matter of the class."""

    def order(self) -> Iterator[ExpertKey]:
        layers, experts = np.nonzero(self._resident)
        values = np.where(self._demoted[layers, experts], -np.inf, self._values[layers, experts])
        # Where many experts are resident and the first one is taken, sorting them all would be most of the work.
        while len(values):
            lowest = np.flatnonzero(values == values.min())
            for i in lowest[np.argsort(self._used[layers[lowest], experts[lowest]])]:
                yield ExpertKey(int(layers[i]), int(experts[i]))
            rest = np.ones(len(values), dtype=bool)
            rest[lowest] = False
            layers, experts, values = layers[rest], experts[rest], values[rest]

    def lowest(self, count: int) -> np.ndarray:
        """Return the values of those that would go first, ascending; at most `count`."""
        values = np.where(self._demoted, 0.0, self._values)[self._resident]
        if len(values) > count:
            values = np.partition(values, count)[:count]
        return np.sort(values)

    def _fit(self, layer: int, expert: int) -> None:
        L, E = self._values.shape
        if layer < L and expert < E:
            return
        grow = ((0, max(0, layer + 1 - L)), (0, max(0, expert + 1 - E)))
        for name in ("_values", "_used", "_resident", "_demoted"):
            setattr(self, name, np.pad(getattr(self, name), grow))


class LFU(Valued):
    """Least frequently used goes first."""

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        self._fit(layer, num_experts - 1)
        known = experts[experts < num_experts]
        np.add.at(self._values[layer], known, 1.0)


class DecayedLFU(Valued):
    """The least frequently used of late goes first: an exponential moving average over the visits of its layer.

    Args:
        half_life: visits of a layer after which a use counts half. In a pass of T tokens each token is a visit.
    """

    def __init__(self, half_life: float = 16.0, layers: int = 1, experts: int = 1) -> None:
        super().__init__(layers, experts)
        if half_life <= 0:
            raise ValueError(f"DecayedLFU: half_life: expected a positive number, got {half_life}")
        self._keep = 0.5 ** (1.0 / half_life)

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        self._fit(layer, num_experts - 1)
        weights = (1.0 - self._keep) * self._keep ** np.arange(len(experts) - 1, -1, -1.0)
        self._values[layer] *= self._keep ** len(experts)
        known = experts < num_experts
        np.add.at(self._values[layer], experts[known], np.broadcast_to(weights[:, None], experts.shape)[known])


class Guided(DecayedLFU):
    """What a predictor holds least likely to be used at the next visit of its layer goes first.

    The predictor's probability is mixed with the moving average, which sees further than one visit.

    Args:
        weight: of the predictor's probability; the moving average has the rest.
        half_life: see `DecayedLFU`.
    """

    guided = True

    def __init__(self, weight: float = 0.5, half_life: float = 16.0, layers: int = 1, experts: int = 1) -> None:
        super().__init__(half_life, layers, experts)
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"Guided: weight: expected a number in [0, 1], got {weight}")
        self._weight = weight
        self._average = DecayedLFU(half_life, layers, experts)

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        self._fit(layer, num_experts - 1)
        self._average.routed(layer, experts, num_experts)
        self._values[layer, :num_experts] = self._average._values[layer, :num_experts]

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """Note how likely each expert (E,) is to be used at the next visit of a layer that was just routed."""
        E = len(chances)
        average = self._average._values[layer, :E]
        self._values[layer, :E] = self._weight * chances + (1.0 - self._weight) * average


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LRU, "lfu": LFU, "lfu-decay": DecayedLFU, "guided": Guided}
