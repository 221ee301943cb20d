"""The native inner steps against the NumPy ones."""

from __future__ import annotations

import numpy as np
import pytest

from moe_kernels.native import native
from specmoe.speculation import Observation
from specmoe.speculation.fused import FusedPredictor, FusedSettings, FusedWeights

L, E, K = 3, 32, 4


def random_weights(settings: FusedSettings) -> FusedWeights:
    rng = np.random.default_rng(0)
    W, H, C, D, V = settings.width, settings.hidden, settings.token_width, len(settings.decays), 9

    def r(*shape: int) -> np.ndarray:
        return (0.1 * rng.normal(size=shape)).astype(np.float32)

    links = r(L, 2 * E, L, 2 * E) * np.triu(np.ones((L, L), dtype=np.float32), 1)[:, None, :, None]
    return FusedWeights(
        settings, K, np.arange(V), np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32), r(V + 1, C), r(2 * C, W),
        r(L, 2 * E, W), r(L, 2 * E, W), r(L, 2 * E, W), r(L, E, W), r(L, W, H), r(L, H), r(L, H, W), r(L, W, 2 * E),
        r(L, 2 * E), links, r(L, 2 * E, 2 * E), r(L, (D + 1) * E, 2 * E), r(L, 2 * E, 2 * E),
        np.ones(L, dtype=np.float32), r(L, (D + 3) * E, E), r(L, (D + 3) * E, 8), r(L, 8, E), r(L, E),
    )  # fmt: skip


@pytest.mark.parametrize("window", [5, 64])
@pytest.mark.parametrize("width", [24, 33])
def test_agrees_with_numpy(window: int, width: int) -> None:
    if not hasattr(native()[0], "RoutePredictor"):
        pytest.skip("the native core is not built")
    weights = random_weights(FusedSettings(width=width, hidden=width + 7, token_width=8, window=window))
    one, other = FusedPredictor(weights), FusedPredictor(weights, use_native=False)
    assert one._native is not None and other._native is None
    rng = np.random.default_rng(1)
    for token in range(24):
        if token == 15:
            one.reset()
            other.reset()
        for predictor in (one, other):
            predictor.begin(np.array([token % 12]))
        for layer in range(L):
            a, b = one.predict(layer), other.predict(layer)
            # bfloat16 weights: three decimal digits.
            assert a is not None and b is not None and np.allclose(a, b, atol=0.01)
            ids = rng.permutation(E)[None, :K]
            if token == 3:
                ids[0, 2] = E
            shares = np.sort(rng.dirichlet([2.0] * K, size=1))[:, ::-1].astype(np.float32)
            for predictor in (one, other):
                predictor.observe(Observation(layer, ids, weights=shares if token % 5 else None))
    kept = one.keep(0), other.keep(0)
    assert kept[0] is not None and kept[1] is not None and np.allclose(*kept)
