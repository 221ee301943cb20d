"""A cache of experts, simulated on recorded routes: no files, no devices, no clock.

Each layer has its own slots. A token's experts are brought in together; then those with the smallest scores leave, the
token's own last of all. The cache outlives a sequence, as it does in an engine.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..counting import membership
from ..traces import RouteTrace

Scores = Callable[[int], np.ndarray]


def cache_hits(trace: RouteTrace, slots: int, scores: Scores) -> np.ndarray:
    """Return (L,): the share of the experts asked for that were resident.

    Args:
        trace: the routes.
        slots: of each layer; at least K.
        scores: for a token's position, (L, E) after it was routed: larger is better kept.

    Raises:
        ValueError: fewer slots than experts per token.
    """
    return resident_before(trace, slots, scores)[0]


def resident_before(trace: RouteTrace, slots: int, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Return the hits (L,) and (N, L, E) bool: what was resident when each token asked. See `cache_hits`."""
    N, L, K = trace.experts.shape
    E = trace.num_experts
    if slots < K:
        raise ValueError(f"cache: slots: expected at least K={K}, got {slots}")
    asked = membership(trace.experts, E) > 0
    before = np.zeros((N, L, E), dtype=bool)
    resident = np.zeros((L, E), dtype=bool)
    hits = np.zeros(L)
    for n in range(N):
        before[n] = resident
        hits += (resident & asked[n]).sum(1)
        resident |= asked[n]
        order = np.where(resident, scores(n), -np.inf)
        order[asked[n]] = np.inf
        least = np.argpartition(-order, min(slots, E) - 1, axis=1)[:, slots:]
        np.put_along_axis(resident, least, False, axis=1)
    return hits / max(1, asked.sum((0, 2)).mean()), before


def lru_scores(trace: RouteTrace) -> Scores:
    """Least recently used goes first; of one token's experts, the one with the least weight."""
    L, E = trace.experts.shape[1], trace.num_experts
    last = np.full((L, E + 1), -np.inf)
    rows = np.arange(L)[:, None]
    place = np.arange(trace.experts.shape[2]) / trace.experts.shape[2]

    def scores(n: int) -> np.ndarray:
        last[rows, np.minimum(trace.experts[n], E)] = n - place
        return last[:, :E]

    return scores


def belady_scores(trace: RouteTrace) -> Scores:
    """What is used again last goes first: no policy can do better."""
    next_use = tokens_until_next_use(trace)
    return lambda n: -next_use[n]


def recorded_scores(values: np.ndarray) -> Scores:
    """Scores (N, L, E) that were noted in a replay."""
    return lambda n: values[n]


def tokens_until_next_use(trace: RouteTrace) -> np.ndarray:
    """Return (N, L, E) float32: tokens from each to the next that uses the expert; infinite where none does."""
    asked = membership(trace.experts, trace.num_experts) > 0
    N = len(asked)
    until = np.empty(asked.shape, dtype=np.float32)
    at = np.full(asked.shape[1:], np.inf, dtype=np.float32)
    for n in range(N - 1, -1, -1):
        until[n] = at - n
        at[asked[n]] = n
    return until


def closed(hits: float, lru: float, belady: float) -> float:
    """Return how much of the way from LRU to Belady is closed."""
    return (hits - lru) / (belady - lru) if belady > lru else 0.0
