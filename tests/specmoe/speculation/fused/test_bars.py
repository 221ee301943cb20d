"""The fused predictor on real routes: what it has to reach on prompts that it has not seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specmoe.speculation import load_routes
from specmoe.speculation.evaluation import belady_scores, cache_hits, lru_scores, measure, replay
from specmoe.speculation.evaluation.caching import closed, recorded_scores
from specmoe.speculation.fused import FusedPredictor, FusedSettings, train_fused


@pytest.mark.slow
def test_on_real_routes_by_prompt() -> None:
    """About five minutes on one free core."""
    file = Path(os.environ.get("MOE_DATA_DIR", "../shared/data")) / "gptoss20b_routes.npz"
    if not file.is_file():
        pytest.skip("needs gptoss20b_routes.npz in MOE_DATA_DIR")
    kept, test = load_routes(file).split(0.2)
    said = replay(FusedPredictor(train_fused(kept, FusedSettings(epochs=7))), test, keep=True)
    figures = measure(test, said.chances, said.heaviest)
    assert figures.mean(figures.top1) >= 0.63
    assert figures.mean(figures.recall_k) >= 0.83
    assert figures.mean(figures.calibration) < 0.01
    assert said.keep is not None
    for slots, bar in ((8, 0.40), (12, 0.35), (16, 0.32)):
        lru, belady, own = (
            float(cache_hits(test, slots, s).mean())
            for s in (lru_scores(test), belady_scores(test), recorded_scores(said.keep))
        )
        assert closed(own, lru, belady) >= bar
