"""The predictor that nobody trains learns what follows what, how much to trust it, and what it costs to be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from specmoe.speculation import AdaptivePredictor, Observation, RanksExperts
from specmoe.speculation.counting import Links
from specmoe.speculation.next_gate import NextGate

L, E, K = 3, 8, 2


def linked_routes(tokens: int, seed: int = 0) -> np.ndarray:
    """Return routes where each layer's experts are a permutation of those of the layer before."""
    rng = np.random.default_rng(seed)
    turn = np.random.default_rng(9).permutation(E)
    routes = np.empty((tokens, L, K), dtype=np.int64)
    for token in range(tokens):
        routes[token, 0] = rng.choice(E, K, replace=False)
        for layer in range(1, L):
            routes[token, layer] = turn[routes[token, layer - 1]]
    return routes


def recall(predictor: AdaptivePredictor, routes: np.ndarray) -> float:
    found = 0
    for token in routes:
        for layer, experts in enumerate(token):
            said = predictor.predict(layer) if layer else None
            if said is not None:
                found += len(set(np.argsort(-said)[:K]) & set(experts))
            predictor.observe(Observation(layer, experts[None]))
    return found / (len(routes) * (L - 1) * K)


def test_it_learns_links_while_it_runs() -> None:
    predictor = AdaptivePredictor(L, E, K)
    assert predictor.predict(0) is None and predictor.keep(0) is None
    recall(predictor, linked_routes(60))
    assert recall(predictor, linked_routes(60, seed=1)) > 0.98


def test_its_probabilities_are_calibrated_on_noise() -> None:
    rng = np.random.default_rng(0)
    predictor = AdaptivePredictor(L, E, K)
    said, came = [], []
    for token in range(400):
        for layer in range(L):
            experts = rng.choice(E, K, replace=False)
            chances = predictor.predict(layer)
            if token > 100 and chances is not None:
                said.append(chances.sum())
                came.append(chances[experts].sum())
            predictor.observe(Observation(layer, experts[None]))
    # Nothing is to be learned: the chances add up to K, and those of what came are no better than the rest.
    assert np.mean(said) == pytest.approx(K, rel=0.1)
    assert np.mean(came) == pytest.approx(K * K / E, rel=0.2)


def test_the_next_gate_is_one_of_its_signals() -> None:
    import torch

    rng = np.random.default_rng(0)
    gate = NextGate({layer: (lambda x: x[:, :E]) for layer in range(L)}, E, K)
    predictor = AdaptivePredictor(L, E, K, gate)
    hits = asked = 0
    for token in range(150):
        coming = torch.from_numpy(rng.normal(size=(1, E))).float()
        for layer in range(L):
            experts = coming[0].topk(K).indices.numpy()
            said = predictor.predict(layer) if layer else None
            if said is not None and token > 50:
                asked += K
                hits += len(set(np.argsort(-said)[:K]) & set(experts))
            predictor.observe(Observation(layer, experts[None], residual=coming))
    assert hits / asked > 0.95


def test_passes_of_several_tokens_ids_of_none_and_resets() -> None:
    predictor = AdaptivePredictor(L, E, K)
    for layer in range(L):
        predictor.observe(Observation(layer, np.array([[0, 1], [2, E], [E, E]])))
    for layer in range(L):
        predictor.observe(Observation(layer, np.array([[0, 3]])))
        chances = predictor.predict((layer + 1) % L)
        assert chances is not None and chances.shape == (E,) and ((chances > 0) & (chances < 1)).all()
    predictor.reset()
    assert predictor.predict(0) is None
    predictor.observe(Observation(0, np.array([[1, 2]])))
    assert predictor.predict(1) is not None and predictor.predict(L) is None
    assert isinstance(predictor, RanksExperts)
    kept = predictor.keep(0)
    assert kept is not None and kept.argmax() in (0, 1, 2)


def test_links_of_one_token_and_of_several_are_the_same() -> None:
    rng = np.random.default_rng(1)
    before, after = ((rng.random((20, E)) < 0.3).astype(np.float32) for _ in range(2))
    one, many = Links(E, K / E), Links(E, K / E)
    many.count(before, after)
    for row, then in zip(before, after, strict=True):
        one.count(row[None], then[None])
    assert np.allclose(many.terms(before), np.concatenate([one.terms(row[None]) for row in before]), atol=1e-5)


def test_where_every_token_uses_every_expert_that_is_certain() -> None:
    predictor = AdaptivePredictor(2, 4, 4)
    everything = np.arange(4)[None]
    for _ in range(3):
        for layer in range(2):
            predictor.observe(Observation(layer, everything))
            said = predictor.predict(1 - layer)
            assert said is None or (np.isfinite(said).all() and (said > 0.99).all())
    assert said is not None
