"""Small traces with habits that can be learned."""

from __future__ import annotations

import numpy as np
import pytest

from specmoe.speculation import RouteTrace
from specmoe.speculation.fused import FusedSettings

L, E, K = 4, 8, 2
TINY = FusedSettings(width=16, hidden=16, token_width=8, window=6, epochs=2, batch_size=32)


def make_trace(sequences: int = 8, length: int = 20, seed: int = 0) -> RouteTrace:
    """Experts follow from the layer before in most steps; the first layer's from the token."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 6, sequences * length)
    experts = np.empty((len(tokens), L, K), dtype=np.uint8)
    for n, token in enumerate(tokens):
        path = np.array([token, (token + 3) % E])
        for layer in range(L):
            experts[n, layer] = path
            path = (path + 1) % E if rng.random() < 0.85 else rng.permutation(E)[:K]
    weights = np.sort(rng.dirichlet([2.0] * K, size=experts.shape[:2]))[:, :, ::-1].astype(np.float16)
    return RouteTrace(experts, np.arange(sequences + 1) * length, E, weights, tokens.astype(np.int32))


@pytest.fixture
def trace() -> RouteTrace:
    return make_trace()
