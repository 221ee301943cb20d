"""What the gate measures along a model's passes, on the clock that counts: loads there slow the compute beside them.

Letters: T tokens of a pass, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specmoe.offload import ExpertKey
from specmoe.offload.bench.emulated_tier import EmulatedTier
from specmoe.offload.engine import ExpertPipeline
from specmoe.offload.tiers import LRU
from specmoe.speculation import AdaptivePredictor, CostGate, Observation

L, E, K = 6, 16, 2
# Head and sampling, in units of a layer's compute.
HEAD = 1.5


class Model:
    """Passes whose layers' experts follow from those of the layer before, four times of five.

    Args:
        ratio: time to load an expert over a layer's compute.
        price: by how much one load slows the compute beside it, if it lies beside it from beginning to end.
        predictor: what is asked; None loads on demand.
    """

    def __init__(self, ratio: float, price: float, predictor: Any, slots: int = 3 * L) -> None:
        self.tier = EmulatedTier(slots, E, ratio, LRU())
        self.gate = CostGate()
        self.pipeline = ExpertPipeline(self.tier, L, predictor=predictor, gate=self.gate, clock=self.tier.clock)
        self.slowed: list[float] = []
        self._rate = price / ratio
        self._rng = np.random.default_rng(0)
        self._turns = [np.random.default_rng(9 + layer).permutation(E) for layer in range(L)]

    def run(self, tokens: int = 1) -> None:
        """Run one pass."""
        experts = np.stack([self._rng.choice(E, K, replace=False) for _ in range(tokens)])
        for layer in range(L):
            if layer:
                experts = np.stack([self._next(layer, row) for row in experts])
            wanted = sorted(set(experts.reshape(-1).tolist()))
            self.pipeline.acquire(layer, wanted, experts)
            self.compute(1.0 if tokens == 1 else 0.3 * tokens)
            self.pipeline.release(layer, wanted)
        self.compute(HEAD)

    def _next(self, layer: int, experts: np.ndarray) -> np.ndarray:
        if self._rng.random() < 0.2:
            return self._rng.choice(E, K, replace=False)
        return self._turns[layer][experts]

    def compute(self, seconds: float) -> None:
        """Let time pass, more of it while something is carried."""
        tier, begin, left = self.tier, self.tier.now, seconds
        while left > 0.0:
            tier._advance(tier.now)
            until = np.inf if tier._carried is None else tier._carried[1]
            rate = 1.0 if tier._carried is None else 1.0 + self._rate
            part = min(left, (until - tier.now) / rate)
            left -= part
            tier.now = until if left > 0.0 else tier.now + rate * part
        self.slowed.append(tier.now - begin - seconds)


def run(ratio: float, price: float, *, guess: bool = True, passes: int = 250) -> Model:
    """Run a model through sequences of a prompt and 50 tokens."""
    model = Model(ratio, price, AdaptivePredictor(L, E, K) if guess else None)
    for n in range(passes):
        if n % 50 == 0:
            model.pipeline.reset()
            model.run(tokens=12)
        model.run()
    return model


def test_loads_that_cost_more_than_they_save_are_left() -> None:
    guessing, demanding = run(0.3, 0.5), run(0.3, 0.5, guess=False)
    assert guessing.tier.now < demanding.tier.now


@pytest.mark.parametrize("price", [0.0, 0.3])
def test_what_a_load_costs_is_found(price: float) -> None:
    model = run(0.3, price)
    loads = model.tier.stats.speculative_loads
    # A load that its layer asks for early lies beside compute for a part of its time only.
    assert loads > 500 and model.gate.slowed <= price + 0.01
    assert model.gate.slowed == pytest.approx(sum(model.slowed) / loads, rel=0.1, abs=0.01)


def test_windows_are_those_of_decoding_and_of_each_layer() -> None:
    model = run(0.3, 0.0, passes=60)
    windows = [model.gate._window[layer].value for layer in range(L)]
    assert windows == pytest.approx([1.0 + HEAD] + [1.0] * (L - 1))
    # Two loads and a half lie before the first layer asks, and one before each other.
    model.gate.load.value, model.gate.slowed = 1.0, 0.0
    candidates = [(0, 0.9), (1, 0.9), (2, 0.9)]
    assert len(model.gate.choose(candidates, 0)) == 3 and len(model.gate.choose(candidates, 1)) == 1


class Certain:
    """A predictor that says that a layer will use the first experts, and takes its time to begin a pass."""

    def __init__(self, tier: EmulatedTier, opening: float) -> None:
        self._tier, self._opening = tier, opening
        self.begun = 0

    def reset(self) -> None:
        """There is nothing to forget."""

    def begin(self, tokens: np.ndarray) -> None:
        self.begun += 1
        self._tier.now += self._opening

    def observe(self, observation: Observation) -> None:
        """It has made up its mind."""

    def predict(self, layer: int) -> np.ndarray | None:
        return np.array([1.0, 1.0] + [0.0] * (E - 2))


def test_a_load_that_outlasts_the_window_has_slowed_it() -> None:
    tier = EmulatedTier(2 * E, E, 4.0, LRU())
    gate = CostGate()
    pipeline = ExpertPipeline(tier, 2, gate=gate, clock=tier.clock)
    for n in range(60):
        layer = n % 2
        pipeline.acquire(layer, [0, 1], np.array([[0, 1]]))
        if n >= 20 and not tier.reading:
            tier.speculate([(ExpertKey(layer, 2 + n // 4), 0.9)])
        tier.now += 1.5 if tier.reading else 1.0
        pipeline.release(layer, [0, 1])
    assert gate._alone[0].value == gate._alone[1].value == pytest.approx(1.0)
    assert gate.slowed > 0.35


def test_what_the_beginning_of_a_pass_takes_is_part_of_watching() -> None:
    tier = EmulatedTier(L * E, E, 0.1, LRU())
    predictor = Certain(tier, opening=0.6)
    pipeline = ExpertPipeline(tier, L, predictor=predictor, clock=tier.clock)
    for n in range(64):
        pipeline.begin(np.array([n]))
        for layer in range(L):
            pipeline.acquire(layer, [0, 1], np.array([[0, 1]]))
            tier.now += 1.0
            pipeline.release(layer, [0, 1])
        if n == 3:
            assert pipeline.gate.watch.value is not None and pipeline.gate.watch.value > 0.0
    # All experts are there: it rests, but for one pass in sixteen.
    assert predictor.begun <= 4 + 64 // 16
