"""Eviction as nobody can have it, or would want it: to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from specmoe.speculation import RouteTrace

from ..store import ExpertKey
from ..tiers.eviction import LRU, POLICIES, EvictionPolicy, Valued
from .arms import Arm

# Slots that the pinned arm gives to the most frequent experts.
PINNED_SHARE = 0.5


class Pinned(LRU):
    """Some experts stay once they are there, the others go by last use.

    Args:
        keys: those that stay; fewer than there are slots by at least the experts of a token.
    """

    def __init__(self, keys: Iterable[ExpertKey]) -> None:
        super().__init__()
        self._stay = frozenset(keys)

    def order(self) -> Iterator[ExpertKey]:
        return (key for key in super().order() if key not in self._stay)


class Belady(Valued):
    """Whoever is used last goes first: the fewest misses that a cache can have (Belady, 1966).

    Args:
        routes: (N, L, K), the run that will be.
        num_experts: E.
    """

    def __init__(self, routes: np.ndarray, num_experts: int) -> None:
        N, L, _ = routes.shape
        super().__init__(L, num_experts)
        never = N * L + 1
        # For every visit of a layer, when each of its experts is used after it.
        self._next = np.full((N + 1, L, num_experts), never, dtype=np.int64)
        for token in range(N - 1, -1, -1):
            self._next[token] = self._next[token + 1]
            for layer in range(L):
                self._next[token, layer, routes[token, layer].astype(np.int64)] = token * L + layer
        self._layers = L
        self.seek(0)

    def seek(self, position: int) -> None:
        """Say which layer of which token comes now."""
        token, layer = divmod(position, self._layers)
        self._values[: layer + 1] = -self._next[token + 1, : layer + 1]
        self._values[layer + 1 :] = -self._next[token, layer + 1 :]


def most_frequent(routes: np.ndarray, num_experts: int, count: int) -> list[ExpertKey]:
    """Return the experts, of all layers, that routes (N, L, K) use most often."""
    _, L, _ = routes.shape
    used = np.stack([np.bincount(routes[:, layer].reshape(-1), minlength=num_experts) for layer in range(L)])
    best = np.argsort(-used.reshape(-1), kind="stable")[:count]
    return [ExpertKey(int(i) // num_experts, int(i) % num_experts) for i in best]


def policy_of(arm: Arm, known: RouteTrace | None, slots: int) -> EvictionPolicy:
    """Return a fresh policy for an arm; `known` is what the most frequent experts are counted in."""
    if arm.policy != "pinned":
        return POLICIES[arm.policy]()
    if known is None:
        raise ValueError(f"{arm.name}: expected routes to count the most frequent experts in, got none")
    return Pinned(most_frequent(known.experts, known.num_experts, int(PINNED_SHARE * slots)))
