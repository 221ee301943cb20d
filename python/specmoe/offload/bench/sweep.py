"""The emulated arms over load/compute and cache sizes, and what bounds them.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specmoe.speculation import LinkCounts, Predictor, PreviousToken, RouteTrace

from ..tiers import LRU, EvictionPolicy, Guided
from .emulate import RATIOS, Chances, Emulated, emulate, foresee, oracle_chances
from .policies import PINNED_SHARE, Belady, Pinned, most_frequent

BASELINE = "LRU on demand"
OURS = "ours"
ORACLE_ARM = "oracle, one layer ahead"
BELADY_ARM = "Belady, on demand"
EMULATED_ARMS = (
    "all resident",
    "no cache",
    BASELINE,
    "LRU + most frequent pinned",
    "LRU + previous token",
    OURS,
    "ours, ungated",
    "ours, no prefetch",
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
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Emulate every arm at every ratio and cache size.

    Args:
        known: routes for predictors to learn from, of other prompts.
        routes: (N, L, K) to replay.
        slots_per_layer: cache sizes; the slots of all layers are one pool.
        ratios: time to load an expert over a layer's compute.
        predictor: makes ours from `known`.
        predict: time of a prediction over a layer's compute.
        warm: tokens at the beginning that do not count.
        starts: tokens that begin a sequence.
        progress: called before each cell.

    Returns:
        One row for each cell: slots, ratio, arm, time per token in layer computes, speedup over the baseline, share of
        the oracle's gain, hit rate, precision of what was guessed, loads per token.
    """
    E, (N, L, K) = known.num_experts, routes.shape
    ours = foresee(predictor(known), routes, E, starts)
    previous = foresee(PreviousToken(L, E, K), routes, E, starts)
    oracle = oracle_chances(routes, E)
    rows: list[dict[str, Any]] = []
    for per_layer in slots_per_layer:
        slots = max(K, per_layer * L)
        for ratio in ratios:
            if progress is not None:
                progress(f"{per_layer} of {E} slots, load/compute {ratio:g}")

            def run(
                policy: EvictionPolicy,
                chances: Chances | None = None,
                slots: int = slots,
                ratio: float = ratio,
                **options: Any,
            ) -> Emulated:
                return emulate(routes, E, slots, ratio, policy, chances=chances, predict=predict, warm=warm, **options)

            belady = Belady(routes, E)
            pinned = most_frequent(known.experts, E, int(PINNED_SHARE * slots))
            results = {
                "no cache": run(LRU(), keep=False),
                BASELINE: run(LRU()),
                "LRU + most frequent pinned": run(Pinned(pinned)),
                "LRU + previous token": run(LRU(), previous),
                OURS: run(Guided(), ours),
                "ours, ungated": run(Guided(), ours, gated=False),
                "ours, no prefetch": run(Guided(), _only_again(ours)),
                ORACLE_ARM: run(LRU(), oracle),
                BELADY_ARM: run(belady, next_use=belady.seek),
            }
            results["all resident"] = Emulated(seconds=float((N - warm) * L), tokens=N - warm)
            # Every layer computes, and what the best cache misses has to be carried: neither can be avoided.
            carried = results[BELADY_ARM].misses * ratio
            results["bound"] = Emulated(seconds=max(carried, float((N - warm) * L)), tokens=N - warm)
            base, best = results[BASELINE].per_token, results[ORACLE_ARM].per_token
            for name in EMULATED_ARMS:
                result = results[name]
                gain = (base - result.per_token) / (base - best) if base - best > 1e-9 else None
                rows.append(
                    {
                        "slots": per_layer,
                        "ratio": ratio,
                        "arm": name,
                        "time": result.per_token,
                        "speedup": base / result.per_token,
                        "oracle_gain": gain,
                        "hit_rate": result.hit_rate if result.requests else None,
                        "precision": result.useful / result.guesses if result.guesses else None,
                        "loads": result.loads / result.tokens,
                    }
                )
    return rows


def _only_again(chances: Chances) -> Chances:
    """Leave a predictor its say in eviction, and nothing else."""
    return Chances(np.full_like(chances.ahead, np.nan), chances.again)


def eviction_shares(rows: Sequence[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Return, by slots, the hit rates of LRU, of ours on demand and of Belady, and the share of the way between."""
    out: dict[int, dict[str, float]] = {}
    for per_layer in sorted({row["slots"] for row in rows}):
        rates = {row["arm"]: row["hit_rate"] for row in rows if row["slots"] == per_layer and row["ratio"] >= 1.0}
        if len(rates) < 3:
            continue
        low, mine, high = rates[BASELINE], rates["ours, no prefetch"], rates[BELADY_ARM]
        out[per_layer] = {"lru": low, "ours": mine, "belady": high, "share": (mine - low) / max(high - low, 1e-12)}
    return out
