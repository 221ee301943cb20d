from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specmoe.speculation import Observation, Predictor, RanksExperts, RouteTrace, SeesTokens
from specmoe.speculation.fused import FusedPredictor, FusedWeights, train_fused
from specmoe.speculation.fused import training as training_module
from specmoe.speculation.fused.batch import make_signals
from specmoe.speculation.fused.training import _inputs, rows_of

from .conftest import TINY, E, K, L, make_trace


def replayed(predictor: FusedPredictor, trace: RouteTrace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities of use, of being the heaviest, and of what to keep, for every token and layer."""
    N = len(trace.experts)
    use, heaviest, keep = (np.zeros((N, L, E)) for _ in range(3))
    first = trace.first_tokens
    assert trace.tokens is not None and trace.weights is not None
    for n in range(N):
        if first[n]:
            predictor.reset()
        predictor.begin(trace.tokens[n : n + 1])
        for layer in range(L):
            use[n, layer] = predictor.predict(layer)
            heaviest[n, layer] = predictor.heaviest(layer)  # type: ignore[index]
            predictor.observe(Observation(layer, trace.experts[n, layer][None], weights=trace.weights[n, layer][None]))
            keep[n, layer] = predictor.keep(layer)
    return use, heaviest, keep


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """Catch the networks that training makes."""
    seen: list[torch.nn.Module] = []
    original = training_module._folded

    def folded(network: torch.nn.Module, keep: torch.nn.Module, *rest: object) -> FusedWeights:
        seen.extend([network, keep])
        return original(network, keep, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(training_module, "_folded", folded)
    return seen


def test_asking_layer_by_layer_is_the_trained_network(trace: RouteTrace, networks: list[torch.nn.Module]) -> None:
    weights = train_fused(trace, TINY)
    network, keeper = networks
    test = make_trace(3, 15, seed=5)
    rows = rows_of(weights.known, test.tokens, len(test.experts))
    signals = make_signals(test, rows, TINY, dtype=torch.float32)
    with torch.no_grad():
        want = network(*_inputs(signals, torch.arange(len(rows))))
        kept = keeper(signals.after).sigmoid().numpy()
    scale = torch.from_numpy(weights.scale)[:, None]
    use, heaviest, keep = replayed(FusedPredictor(weights, adapt=0.0, use_native=False), test)
    assert np.allclose(use, (want[..., :E] * scale).sigmoid(), atol=2e-4)
    assert np.allclose(heaviest, want[..., E:].softmax(-1), atol=2e-4)
    assert np.allclose(keep, kept, atol=2e-4)


def test_learns_and_keeps_the_interfaces() -> None:
    predictor = FusedPredictor(train_fused(make_trace(10), replace(TINY, epochs=25, learning_rate=1e-2)))
    asked: Predictor = predictor
    assert isinstance(asked, SeesTokens) and isinstance(asked, RanksExperts)
    test = make_trace(3, 20, seed=7)
    use, _, _ = replayed(predictor, test)
    best = np.argsort(-use, axis=2)[..., :K]
    right = (best[..., None] == test.experts[:, :, None]).any(3).mean((0, 2))
    # A layer follows from the one before in 85 % of the steps, the first one from the token always.
    assert right[0] > 0.9 and right[1:].mean() > 0.75
    assert (use >= 0).all() and (use <= 1).all()


def test_saved_weights_are_read_back(trace: RouteTrace, tmp_path: Path) -> None:
    weights = train_fused(trace, TINY)
    weights.save(tmp_path / "p.npz")
    back = FusedWeights.load(tmp_path / "p.npz")
    assert back.settings == TINY and back.parameters == weights.parameters and back.top_k == K
    one = replayed(FusedPredictor(weights), trace.take(np.array([0])))[0]
    other = replayed(FusedPredictor(back), trace.take(np.array([0])))[0]
    assert np.allclose(one, other, atol=5e-3)
    (tmp_path / "p.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match="expected weights of the fused predictor"):
        FusedWeights.load(tmp_path / "p.npz")
    with pytest.raises(FileNotFoundError, match="no file at"):
        FusedWeights.load(tmp_path / "absent.npz")


def test_what_is_not_told_is_done_without(trace: RouteTrace) -> None:
    predictor = FusedPredictor(train_fused(trace, TINY))
    for _ in range(3):
        for layer in range(L):
            chances = predictor.predict(layer)
            assert chances is not None and chances.shape == (E,)
            assert predictor.predict((layer + 2) % L) is None
            predictor.observe(Observation(layer, np.array([[1, E]])))
    # A pass whose beginning was not seen is not predicted, the next one is.
    predictor.observe(Observation(0, np.array([[1, 2]])))
    predictor.observe(Observation(2, np.array([[1, 2]])))
    assert predictor.predict(3) is None
    assert predictor.predict(0) is not None


def test_several_tokens_add_up(trace: RouteTrace) -> None:
    predictor = FusedPredictor(train_fused(trace, TINY), adapt=0.0)
    predictor.begin(np.array([1, 2, 3]))
    first = predictor.predict(0)
    predictor.reset()
    predictor.begin(np.array([1]))
    alone = predictor.predict(0)
    assert first is not None and alone is not None and (first >= alone - 1e-6).all()
    predictor.observe(Observation(0, np.array([[1, 4]])))
    predictor.reset()
    for layer in range(L):
        predictor.observe(Observation(layer, np.array([[0, 1], [2, 3], [4, 5]])))
    assert predictor.predict(0) is not None


def test_adapts_to_what_it_sees(trace: RouteTrace) -> None:
    predictor = FusedPredictor(train_fused(trace, TINY), adapt=0.2)
    for _ in range(60):
        for layer in range(L):
            predictor.predict(layer)
            predictor.observe(Observation(layer, np.array([[6, 7]])))
        predictor.reset()
    chances = predictor.predict(0)
    assert chances is not None and set(np.argsort(-chances)[:2]) == {6, 7}


def test_refuses_one_sequence_and_unknown_signals(trace: RouteTrace) -> None:
    with pytest.raises(ValueError, match="at least 2 sequences"):
        train_fused(make_trace(1), TINY)
    with pytest.raises(ValueError, match="expected some of path, .* got smell"):
        train_fused(trace, replace(TINY, signals=("smell",)))
