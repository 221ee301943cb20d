"""What speculation and eviction are worth in the engine, on the clock, with real routes. See docs/offload.md."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from specmoe.offload.bench import eviction_shares, sweep
from specmoe.speculation import AdaptivePredictor, Predictor, RouteTrace, load_routes
from specmoe.speculation.fused import FusedPredictor, FusedSettings, train_fused

ROUTES = Path(os.environ.get("MOE_DATA_DIR", "")) / "gptoss20b_routes.npz"
# Slots of 32, share of the oracle's gain from load/compute 0.25 to 1, share of the way from LRU to Belady.
BARS = {8: (0.72, 0.40), 12: (0.67, 0.35), 16: (0.63, 0.32)}
TOKENS = 200


def rows_of(kept: RouteTrace, held: RouteTrace, predictor: Predictor, **options: Any) -> list[dict[str, Any]]:
    assert held.weights is not None and held.tokens is not None
    return sweep(
        kept,
        held.experts[:TOKENS],
        predictor=lambda _: predictor,
        starts=held.starts.tolist(),
        weights=held.weights[:TOKENS],
        tokens=held.tokens[:TOKENS],
        **options,
    )


def check(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["arm"] in ("ours", "ours, untrained"):
            assert row["speedup"] > 0.99, row
        if row["arm"] == "ours" and 0.25 <= row["ratio"] <= 1.0:
            assert row["oracle_gain"] >= BARS[row["slots"]][0], row
    shares = eviction_shares(rows)
    for slots, (_, bar) in BARS.items():
        assert shares[slots]["share"] >= bar, shares[slots]


@pytest.mark.slow
@pytest.mark.skipif(not ROUTES.is_file(), reason="MOE_DATA_DIR has no gptoss20b_routes.npz")
def test_the_fused_predictor_in_the_engine() -> None:
    kept, held = load_routes(ROUTES).split(0.2, 0)
    check(rows_of(kept, held, FusedPredictor(train_fused(kept, FusedSettings(epochs=7)))))


@pytest.mark.skipif(not ROUTES.is_file(), reason="MOE_DATA_DIR has no gptoss20b_routes.npz")
def test_without_training_it_wins_as_well() -> None:
    kept, held = load_routes(ROUTES).split(0.2, 0)
    L, K = kept.experts.shape[1:]
    rows = rows_of(kept, held, AdaptivePredictor(L, kept.num_experts, K), slots_per_layer=(8,), ratios=(0.05, 0.5, 4.0))
    assert all(row["speedup"] > 1.05 for row in rows if row["arm"] == "ours")
