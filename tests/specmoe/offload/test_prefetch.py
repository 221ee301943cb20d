"""What a predictor is told and asked while a model runs, and that no answer changes a bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.offload import offload
from specmoe.offload.bench.emulated_tier import EmulatedTier
from specmoe.offload.engine import ExpertPipeline
from specmoe.offload.tiers import LRU, Guided
from specmoe.speculation import CostGate, Observation, record_trace
from specmoe.speculation.fused import FusedSettings, train_fused

from .test_engine import EXPERTS, LAYERS, TOP_K, budget, generate, make_model, same_bits

# The sizes are too small for threads to pay, and busy ones slow the reader lanes down.
pytestmark = pytest.mark.usefixtures("one_thread")


class Listener:
    """A predictor that notes all it is told, and says that every expert is as likely as any."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def reset(self) -> None:
        self.told.append("reset")

    def begin(self, tokens: np.ndarray) -> None:
        self.told.append(tokens.tolist())

    def observe(self, observation: Observation) -> None:
        self.told.append(observation)

    def predict(self, layer: int) -> np.ndarray | None:
        return np.full(EXPERTS, TOP_K / EXPERTS)

    def keep(self, layer: int) -> np.ndarray | None:
        return np.linspace(0, 1, EXPERTS)


def test_a_predictor_hears_of_sequences_tokens_and_weights(tmp_path: Path, prompt: torch.Tensor) -> None:
    model = make_model()
    expected = generate(model, prompt, 3)
    listener = Listener()
    with offload(model, tmp_path / "s", memory=budget(6), predictor=listener, gated=False):
        assert same_bits(generate(model, prompt, 3), expected)
        told, listener.told = listener.told, []
        assert same_bits(generate(model, prompt, 3), expected)
    assert told[:2] == ["reset", prompt[0].tolist()] and told.count("reset") == 1
    assert listener.told[0] == "reset"
    passes = [i for i, what in enumerate(told) if isinstance(what, list)]
    # What was sampled last is the token of the next pass.
    assert [told[i] for i in passes[1:]] == [[int(t)] for t in expected[0][0, 9:11]]
    for begin in passes:
        layers = told[begin + 1 : begin + 1 + LAYERS]
        tokens = len(told[begin])
        assert [seen.layer for seen in layers] == list(range(LAYERS))
        for seen in layers:
            assert seen.experts.shape == seen.weights.shape == (tokens, TOP_K)
            assert seen.residual.shape == (tokens, 32)
            assert (np.diff(seen.weights, axis=1) <= 0).all()


@pytest.mark.parametrize("predictor", ["adaptive", "fused"])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("slots", [4, 9])
def test_learning_predictors_change_no_bit(
    tmp_path: Path, prompt: torch.Tensor, predictor: str, gated: bool, slots: int
) -> None:
    model = make_model()
    if predictor == "fused":
        predictor = str(fused_file(model, tmp_path))
    expected = generate(model, prompt, 12)
    with offload(model, tmp_path / "s", memory=budget(slots), predictor=predictor, gated=gated) as engine:
        assert same_bits(generate(model, prompt, 12), expected)
        assert same_bits(generate(model, prompt, 12), expected)
        assert gated or engine.stats.speculative_loads > 0


def fused_file(model: Any, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    trace = record_trace(model, [torch.randint(0, 50, (24,), generator=generator) for _ in range(6)])
    settings = FusedSettings(width=16, hidden=16, token_width=8, window=16, batch_size=32, epochs=1)
    path = folder / "fused.npz"
    train_fused(trace, settings).save(path)
    return path


def test_a_fused_predictor_of_another_model_is_refused(tmp_path: Path, prompt: torch.Tensor) -> None:
    path = fused_file(make_model(num_hidden_layers=2), tmp_path)
    model = make_model()
    expected = generate(model, prompt)
    with pytest.raises(ValueError, match=r"expected weights for \(3, 6, 2\) .* for \(2, 6, 2\)"):
        offload(model, tmp_path / "s", memory=budget(6), predictor=path)
    with pytest.raises(FileNotFoundError):
        offload(model, tmp_path / "s", memory=budget(6), predictor=tmp_path / "no.npz")
    assert same_bits(generate(model, prompt), expected)


def test_the_first_layer_is_guessed_when_its_token_is_known() -> None:
    tier = EmulatedTier(9, EXPERTS, 0.1, Guided())
    pipeline = ExpertPipeline(tier, LAYERS, predictor=Listener(), gate=CostGate(enabled=False), clock=tier.clock)
    pipeline.begin(np.array([7]))
    tier.now += 1.0
    pipeline.acquire(0, [0, 1], np.array([[0, 1]]))
    assert tier.stats.prefetched == 2 and tier.stats.misses == 0


def test_a_policy_that_ranks_nothing_is_not_advised() -> None:
    class Counting(Listener):
        def keep(self, layer: int) -> np.ndarray | None:
            raise AssertionError("LRU asked what to keep")

    tier = EmulatedTier(9, EXPERTS, 0.1, LRU())
    pipeline = ExpertPipeline(tier, LAYERS, predictor=Counting(), clock=tier.clock)
    pipeline.acquire(0, [0, 1], np.array([[0, 1]]))


def test_a_predictor_rests_where_nothing_is_missing() -> None:
    listener = Listener()
    tier = EmulatedTier(LAYERS * EXPERTS, EXPERTS, 0.1, Guided())

    class Slow(Listener):
        def observe(self, observation: Observation) -> None:
            tier.now += 0.01
            listener.observe(observation)

    pipeline = ExpertPipeline(tier, LAYERS, predictor=Slow(), clock=tier.clock)
    rng = np.random.default_rng(0)
    for token in range(160):
        if token == 80:
            listener.told.clear()
        for layer in range(LAYERS):
            experts = rng.choice(EXPERTS, TOP_K, replace=False)
            pipeline.acquire(layer, experts.tolist(), experts[None])
            tier.now += 1.0
            pipeline.release(layer, experts.tolist())
    assert LAYERS * 4 <= len(listener.told) <= LAYERS * 6


@pytest.mark.parametrize("predictor", ["none", "resting"])
def test_nothing_is_noted_for_a_predictor_that_hears_nothing(
    tmp_path: Path, prompt: torch.Tensor, monkeypatch: pytest.MonkeyPatch, predictor: str
) -> None:
    def noted(*_: Any) -> None:
        raise AssertionError("routing weights were read")

    model = make_model()
    expected = generate(model, prompt, 3)
    listener = Listener()
    with offload(
        model, tmp_path / "s", memory=budget(6), predictor=None if predictor == "none" else listener
    ) as engine:
        pipeline = engine.pipeline
        monkeypatch.setattr("specmoe.offload.engine.experts.routing_weights", noted)
        monkeypatch.setattr(pipeline.gate, "worth_watching", lambda: False)
        assert same_bits(generate(model, prompt, 3), expected)
        assert not pipeline.watching and pipeline.residual is None
        assert listener.told in ([], ["reset"])


def test_embeddings_without_ids_begin_a_pass_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    listener = Listener()
    with offload(model, tmp_path / "s", memory=budget(6), predictor=listener) as engine:
        answers = iter([False, True])
        monkeypatch.setattr(engine.pipeline.gate, "worth_watching", lambda: next(answers))
        for _ in range(2):
            with torch.no_grad():
                model(inputs_embeds=torch.ones(1, 4, 32))
    seen = [what for what in listener.told if isinstance(what, Observation)]
    assert [observation.layer for observation in seen] == list(range(LAYERS))
    assert all(observation.weights is not None and observation.residual is not None for observation in seen)
