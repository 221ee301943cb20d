from __future__ import annotations

import numpy as np
import pytest

from specmoe.speculation import BlendedPredictor, MovingAverage, Observation, PreviousToken

E, K, L = 12, 2, 2


class Hint:
    """Says more of some experts than of others: of the used ones among `sees`, `p`; of the rest the base rate."""

    def __init__(self, routes: np.ndarray, sees: range, p: float) -> None:
        self.routes, self.sees, self.p = routes, sees, p
        self.now = 0
        self.resets = 0

    def reset(self) -> None:
        self.resets += 1

    def observe(self, observation: Observation) -> None:
        self.now += observation.layer == L - 1

    def predict(self, layer: int) -> np.ndarray | None:
        said = np.full(E, K / E)
        for expert in self.sees:
            said[expert] = self.p if expert in self.routes[self.now, layer] else 1 - self.p
        return said


def routes(seed: int, tokens: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([[rng.permutation(E)[:K] for _ in range(L)] for _ in range(tokens)])


def run(predictor, tokens: np.ndarray, last: int) -> float:
    """Returns the share of used experts among the K likeliest, in the last tokens."""
    hits = 0
    for n, token in enumerate(tokens):
        for layer in range(L):
            chances = predictor.predict(layer)
            if n >= len(tokens) - last:
                hits += len(set(np.argsort(-chances)[:K]) & set(token[layer]))
            predictor.observe(Observation(layer, token[layer][None]))
    return hits / (last * L * K)


def test_parts_that_know_different_experts_are_better_together():
    tokens = routes(0, 600)
    low, high = Hint(tokens, range(6), 0.9), Hint(tokens, range(6, 12), 0.9)
    alone = run(Hint(tokens, range(6), 0.9), tokens, 300)
    blend = BlendedPredictor([low, high], L, E, K)
    assert run(blend, tokens, 300) == 1.0 > alone + 0.2


def test_what_is_wrong_loses_its_weight():
    tokens = routes(1, 800)
    honest, liar = Hint(tokens, range(12), 0.8), Hint(tokens, range(12), 0.2)
    blend = BlendedPredictor([honest, liar], L, E, K)
    assert run(blend, tokens, 200) == 1.0
    assert (blend.weights[:, 0] > 0.5).all() and (blend.weights[:, 1] < 0).all()


def test_is_calibrated():
    """A part that says 0.95 and is right in 0.7 is believed 0.7."""
    rng = np.random.default_rng(2)
    used = (rng.random((4000, E)) < K / E).astype(float)

    class Sure:
        def reset(self): ...

        def observe(self, observation): ...

        def predict(self, layer):
            # Where an expert is used it is named in 60 % of the cases, else in 5 %.
            named = rng.random(E) < np.where(used[self.n], 0.6, 0.05)
            return np.where(named, 0.95, 0.1)

    part = Sure()
    blend = BlendedPredictor([part], 1, E, K)
    said, right = [], []
    for n, row in enumerate(used):
        part.n = n
        chances = blend.predict(0)
        if n >= 2000:
            said.extend(chances[chances > 0.3])
            right.extend(row[chances > 0.3])
        ids = np.flatnonzero(row)
        blend.observe(Observation(0, np.append(ids, np.full(E - len(ids), E))[None]))
    assert abs(np.mean(said) - np.mean(right)) < 0.05


def test_parts_that_know_nothing():
    blend = BlendedPredictor([PreviousToken(L, E, K), MovingAverage(L, E, K)], L, E, K)
    tokens = routes(3, 5)
    assert blend.predict(L) is None
    for token in tokens:
        for layer in range(L):
            chances = blend.predict(layer)
            assert chances is None or (chances.shape == (E,) and np.isfinite(chances).all())
            blend.observe(Observation(layer, token[layer][None]))
    # Several tokens in a pass.
    blend.observe(Observation(0, tokens[:3, 0]))
    assert blend.predict(1) is not None


def test_reset_keeps_what_was_learned():
    tokens = routes(4, 300)
    part = Hint(tokens, range(12), 0.9)
    blend = BlendedPredictor([part], L, E, K)
    run(blend, tokens, 10)
    before = blend.weights.copy()
    blend.reset()
    assert part.resets == 1 and np.array_equal(blend.weights, before) and before[0, 0] != 1.0


def test_refuses_no_parts():
    with pytest.raises(ValueError, match="at least one"):
        BlendedPredictor([], L, E, K)
