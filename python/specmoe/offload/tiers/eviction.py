"""Which resident expert goes when a slot is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterator
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

    def victim(self, held: Container[ExpertKey]) -> ExpertKey | None:
        """Return the first to go that is not in `held`; None where there is none."""

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """A layer uses these experts (T, K) now; it is told before their slots are asked for."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """A predictor gives each expert (E,) of a layer that was just routed this chance to be used there next."""

    def rank(self, layer: int, worth: np.ndarray) -> None:
        """A predictor says how soon each expert (E,) of a layer that was just routed is used again, 1 is soonest."""

    def coming(self, layer: int, chances: np.ndarray) -> None:
        """A predictor gives each expert (E,) of a layer that comes soon this chance to be used there."""


class LRU:
    """Least recently used goes first."""

    # Whether `expect` and `rank` are worth calling.
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

    def victim(self, held: Container[ExpertKey]) -> ExpertKey | None:
        return next((key for key in self.order() if key not in held), None)

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """The order of use says all."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """The order of use says all."""

    def rank(self, layer: int, worth: np.ndarray) -> None:
        """The order of use says all."""

    def coming(self, layer: int, chances: np.ndarray) -> None:
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
        # Added to a value where a victim is sought: 0 for who is resident, -inf who goes first, inf who is not there.
        self._barred = np.full((layers, experts), np.inf)
        self._scratch = np.empty((layers, experts))

    def insert(self, key: ExpertKey) -> None:
        self._fit(key.layer, key.expert)
        self.touch(key)

    def touch(self, key: ExpertKey) -> None:
        self._clock += 1
        self._used[key], self._barred[key] = self._clock, 0.0

    def demote(self, key: ExpertKey) -> None:
        self._barred[key] = -np.inf

    def remove(self, key: ExpertKey) -> None:
        self._barred[key] = np.inf

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """Values are a matter of the class."""

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """Values are a matter of the class."""

    def rank(self, layer: int, worth: np.ndarray) -> None:
        """Values are a matter of the class."""

    def coming(self, layer: int, chances: np.ndarray) -> None:
        """Values are a matter of the class."""

    def order(self) -> Iterator[ExpertKey]:
        layers, experts = np.nonzero(self._barred < np.inf)
        values = self._values[layers, experts] + self._barred[layers, experts]
        for i in np.lexsort((self._used[layers, experts], values)):
            yield ExpertKey(int(layers[i]), int(experts[i]))

    def victim(self, held: Container[ExpertKey]) -> ExpertKey | None:
        # The first is nearly always free to go; sorting all that are resident would be most of the work.
        values = np.add(self._values, self._barred, out=self._scratch)
        low = values.min()
        if low == np.inf:
            return None
        lowest = np.flatnonzero(values == low)
        if len(lowest) > 1:
            lowest = lowest[np.argsort(self._used.reshape(-1)[lowest])]
        experts = values.shape[1]
        for i in lowest.tolist():
            key = ExpertKey(i // experts, i % experts)
            if key not in held:
                return key
        return next((key for key in self.order() if key not in held), None)

    def lowest(self, count: int) -> np.ndarray:
        """Return the values of those that would go first, ascending; at most `count`."""
        values = np.where(self._barred < 0.0, 0.0, self._values)[self._barred < np.inf]
        if len(values) > count:
            values = np.partition(values, count)[:count]
        return np.sort(values)

    def _fit(self, layer: int, expert: int) -> None:
        L, E = self._values.shape
        if layer < L and expert < E:
            return
        grow = ((0, max(0, layer + 1 - L)), (0, max(0, expert + 1 - E)))
        for name, filler in (("_values", 0), ("_used", 0), ("_barred", np.inf)):
            setattr(self, name, np.pad(getattr(self, name), grow, constant_values=filler))
        self._scratch = np.empty_like(self._values)


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
        known = experts < num_experts
        self._values[layer] *= self._keep ** len(experts)
        if len(experts) == 1:
            np.add.at(self._values[layer], experts[known], 1.0 - self._keep)
            return
        weights = (1.0 - self._keep) * self._keep ** np.arange(len(experts) - 1, -1, -1.0)
        np.add.at(self._values[layer], experts[known], np.broadcast_to(weights[:, None], experts.shape)[known])


class Guided(DecayedLFU):
    """What a predictor holds least worth keeping goes first.

    One that ranks experts by their next use is taken at its word. Of one that knows no more than the next visit, the
    probability is mixed with the moving average, which sees further. Until either speaks, and where the predictor
    rests, the average decides alone.

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
        # What experts are worth once their layer's coming visit is over.
        self._later = np.zeros((layers, experts))

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        self._average.routed(layer, experts, num_experts)
        self.rank(layer, self._average._values[layer, :num_experts])

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """Note how likely each expert (E,) is to be used at the next visit of a layer that was just routed."""
        average = self._average._values[layer, : len(chances)]
        self.rank(layer, self._weight * chances + (1.0 - self._weight) * average)

    def rank(self, layer: int, worth: np.ndarray) -> None:
        """Note how soon each expert (E,) of a layer that was just routed will be used again."""
        self._fit(layer, len(worth) - 1)
        self._later[layer, : len(worth)] = worth
        self._values[layer, : len(worth)] = worth

    def coming(self, layer: int, chances: np.ndarray) -> None:
        """Add to an expert's worth the chance (E,) that a layer which comes soon uses it; until that was routed."""
        self._fit(layer, len(chances) - 1)
        np.add(self._later[layer, : len(chances)], chances, out=self._values[layer, : len(chances)])

    def _fit(self, layer: int, expert: int) -> None:
        L, E = self._later.shape
        if layer < L and expert < E:
            return
        super()._fit(layer, expert)
        grow = [(0, new - old) for new, old in zip(self._values.shape, self._later.shape, strict=True)]
        if any(more for _, more in grow):
            self._later = np.pad(self._later, grow)


POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"lru": LRU, "lfu": LFU, "lfu-decay": DecayedLFU, "guided": Guided}
