"""Speculation on a deterministic clock: what a prefetch is worth where every second is a number.

One lane loads experts, one after the other; a load that has begun is not broken off. A layer asks for its experts,
waits for those that are missing, computes, and meanwhile the lane loads guesses for the next layer; what has not begun
when the next layer asks is dropped. Every layer has its own slots. There are no files and no devices.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..cost_gate import CostGate
from ..traces import RouteTrace
from .caching import Scores

Guess = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Timed:
    """What one run took.

    Args:
        seconds: in all.
        misses: experts that were loaded on demand.
        useful, wasted: guesses that were loaded and used by the layer they were for, and those that were not.
    """

    seconds: float
    misses: int
    useful: int
    wasted: int


def run_clock(
    trace: RouteTrace,
    slots: int,
    scores: Scores,
    *,
    compute: float,
    load: float,
    guess: Guess | None = None,
    gate: CostGate | None = None,
    predict: float = 0.0,
) -> Timed:
    """Run a trace.

    Args:
        trace: the routes.
        slots: of each layer, at least K.
        scores: what to keep, as in `cache_hits`.
        compute: seconds of a layer's compute.
        load: seconds to load an expert.
        guess: for a token and a layer, (E,) probabilities of use, before the layer asks; None for on-demand only.
        gate: what decides which guesses are loaded; it learns while the clock runs. None: no guess is.
        predict: seconds of a prediction, which the layer waits for.
    """
    N, L, K = trace.experts.shape
    E = trace.num_experts
    resident = np.zeros((L, E), dtype=bool)
    worth = np.zeros((L, E))
    now = free_at = 0.0
    misses = useful = wasted = 0
    queue: list[tuple[int, float]] = []
    loaded: set[int] = set()
    candidates: list[tuple[int, float]] = []
    for n in range(N):
        for layer in range(L):
            asked = {int(e) for e in trace.experts[n, layer] if e < E}
            # The guesses that have begun by now are there, or will be when the lane is free.
            for expert, _ in queue:
                if free_at >= now:
                    break
                free_at += load
                loaded.add(expert)
            row = resident[layer]
            for expert in loaded:
                _evict(row, worth[layer], slots, asked)
                row[expert] = True
            useful += len(loaded & asked)
            wasted += len(loaded - asked)
            if gate is not None and candidates:
                gate.record_outcomes([(p, expert in asked) for expert, p in candidates])
            missing = [expert for expert in asked if not row[expert]]
            misses += len(missing)
            # A guess that the layer waits for may still be on its way, and so may a wrong one before what is missing.
            ready = max(now, free_at) if missing or loaded & asked else now
            ready += load * len(missing)
            free_at = max(free_at, ready) if missing else max(free_at, now)
            for expert in missing:
                _evict(row, worth[layer], slots, asked)
                row[expert] = True
            worth[layer] = scores(n)[layer]
            for expert in loaded - asked:
                worth[layer, expert] = -np.inf
            spent = 0.0
            loaded, queue, candidates = set(), [], []
            target = (layer + 1) % L
            coming = n if target else n + 1
            if gate is not None:
                gate.record_demand(bool(missing))
                gate.record_load(load)
                if guess is not None and coming < N and gate.worth_predicting():
                    chances = guess(coming, target)
                    order = np.argsort(-chances, kind="stable")[: 2 * K]
                    candidates = [(int(e), float(chances[e])) for e in order if not resident[target, e]]
                    queue = gate.choose(candidates)
                    spent = predict
                    gate.record_predict(predict)
                gate.record_compute(compute)
            free_at = max(free_at, now)
            now = ready + spent + compute
    return Timed(now, misses, useful, wasted)


def _evict(row: np.ndarray, worth: np.ndarray, slots: int, asked: set[int]) -> None:
    """Make room for one more among a layer's resident experts; what is asked for stays."""
    if int(row.sum()) < slots:
        return
    held = [e for e in np.flatnonzero(row).tolist() if e not in asked] or np.flatnonzero(row).tolist()
    row[min(held, key=lambda e: worth[e])] = False
