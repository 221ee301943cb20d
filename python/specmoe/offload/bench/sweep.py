"""The emulated arms over load/compute and cache sizes, and what bounds them.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from specmoe.speculation import AdaptivePredictor, LinkCounts, Predictor, PreviousToken, RouteTrace

from ..tiers import LRU, EvictionPolicy, Guided
from .emulate import RATIOS, WATCHING, Chances, Emulated, emulate, foresee, oracle_chances
from .policies import PINNED_SHARE, Belady, Pinned, most_frequent

BASELINE = "LRU on demand"
OURS = "ours"
UNTRAINED = "ours, untrained"
NO_PREFETCH = "ours, no prefetch"
ORACLE_ARM = "oracle, one layer ahead"
BELADY_ARM = "Belady, on demand"
EMULATED_ARMS = (
    "all resident",
    "no cache",
    BASELINE,
    "LRU + most frequent pinned",
    "LRU + previous token",
    UNTRAINED,
    OURS,
    "ours, ungated",
    NO_PREFETCH,
    ORACLE_ARM,
    BELADY_ARM,
    "bound",
)


def sweep(
    known: RouteTrace,
    routes: np.ndarray,
    *,
    slots_per_layer: Sequence[int] = (8, 12, 16),
    ratios: Sequence[float] = RATIOS,
    predictor: Callable[[RouteTrace], Predictor] = LinkCounts,
    predict: float = 0.01,
    warm: int = 16,
    starts: Sequence[int] = (),
    weights: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Emulate every arm at every ratio and cache size.

    Args:
        known: routes for predictors to learn from, of other prompts.
        routes: (N, L, K) to replay.
        slots_per_layer: cache sizes; the slots of all layers are one pool.
        ratios: time to load an expert over a layer's compute.
        predictor: makes ours from `known`.
        predict: time of a prediction over a layer's compute; the oracle takes none.
        warm: tokens at the beginning that do not count.
        starts: tokens that begin a sequence.
        weights: (N, L, K), the routing weights; None where they are unknown.
        tokens: (N,), token ids; None where they are unknown.
        progress: called before each cell.

    Returns:
        One row for each cell: slots, ratio, arm, time per token in layer computes, speedup over the baseline, share of
        the oracle's gain, hit rate, precision of what was guessed, loads per token.
    """
    E, (N, L, K) = known.num_experts, routes.shape
    given: dict[str, Any] = {"starts": starts, "weights": weights, "tokens": tokens}
    ours = foresee(predictor(known), routes, E, **given)
    untrained = foresee(AdaptivePredictor(L, E, K), routes, E, **given)
    previous = foresee(PreviousToken(L, E, K), routes, E, **given)
    oracle = oracle_chances(routes, E)
    rows: list[dict[str, Any]] = []
    for per_layer in slots_per_layer:
        slots = max(K, per_layer * L)

        def run(
            ratio: float, policy: EvictionPolicy, chances: Chances | None = None, slots: int = slots, **options: Any
        ) -> Emulated:
            timed = {"predict": predict, "warm": warm, **options}
            return emulate(routes, E, slots, ratio, policy, chances=chances, **timed)

        belady = Belady(routes, E)
        pinned = most_frequent(known.experts, E, int(PINNED_SHARE * slots))
        # What is loaded on demand does not depend on how long that takes.
        on_demand = {
            "no cache": run(1.0, LRU(), keep=False),
            BASELINE: run(1.0, LRU()),
            "LRU + most frequent pinned": run(1.0, Pinned(pinned)),
            NO_PREFETCH: run(1.0, Guided(), _only_advice(ours), predict=0.0),
            BELADY_ARM: run(1.0, belady, next_use=belady.seek),
        }
        for ratio in ratios:
            if progress is not None:
                progress(f"{per_layer} of {E} slots, load/compute {ratio:g}")
            results = {name: _at(result, ratio, (N - warm) * L) for name, result in on_demand.items()}
            results[NO_PREFETCH].seconds += WATCHING * predict * (N - warm) * L
            results |= {
                "LRU + previous token": run(ratio, LRU(), previous),
                UNTRAINED: run(ratio, Guided(), untrained),
                OURS: run(ratio, Guided(), ours),
                "ours, ungated": run(ratio, Guided(), ours, gated=False),
                ORACLE_ARM: run(ratio, LRU(), oracle, predict=0.0),
                "all resident": Emulated(seconds=float((N - warm) * L), tokens=N - warm),
            }
            # Every layer computes, and what the best cache misses has to be carried: neither can be avoided.
            carried = results[BELADY_ARM].misses * ratio
            results["bound"] = Emulated(seconds=max(carried, float((N - warm) * L)), tokens=N - warm)
            rows += _rows(results, per_layer, ratio)
    return rows


def _at(result: Emulated, ratio: float, computes: int) -> Emulated:
    """Return a run on demand as it would be at another load time."""
    return replace(result, seconds=computes + ratio * result.misses)


def _rows(results: dict[str, Emulated], slots: int, ratio: float) -> list[dict[str, Any]]:
    base, best = results[BASELINE].per_token, results[ORACLE_ARM].per_token
    rows = []
    for name in EMULATED_ARMS:
        result = results[name]
        rows.append(
            {
                "slots": slots,
                "ratio": ratio,
                "arm": name,
                "time": result.per_token,
                "speedup": base / result.per_token,
                "oracle_gain": (base - result.per_token) / (base - best) if base - best > 1e-9 else None,
                "hit_rate": result.hit_rate if result.requests else None,
                "precision": result.useful / result.guesses if result.guesses else None,
                "loads": result.loads / result.tokens,
            }
        )
    return rows


def _only_advice(chances: Chances) -> Chances:
    """Leave a predictor its say in eviction, and nothing else."""
    return Chances(np.full_like(chances.ahead, np.nan), chances.again, chances.keep)


def eviction_shares(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return, by slots, the hit rates of LRU, of ours on demand and of Belady, and the share of the way between."""
    out: dict[int, dict[str, float]] = {}
    for per_layer in sorted({row["slots"] for row in rows}):
        rates = {row["arm"]: row["hit_rate"] for row in rows if row["slots"] == per_layer and row["ratio"] >= 1.0}
        if len(rates) < 3:
            continue
        low, mine, high = rates[BASELINE], rates[NO_PREFETCH], rates[BELADY_ARM]
        out[per_layer] = {"lru": low, "ours": mine, "belady": high, "share": (mine - low) / max(high - low, 1e-12)}
    return out
