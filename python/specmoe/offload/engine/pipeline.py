"""What happens around one layer's experts: demand, predict the next layer, wait, run, release.

The prediction is made while the demanded experts are on their way, and its loads begin behind theirs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from specmoe.speculation import CostGate, Observation, Predictor

from ..store import ExpertKey
from ..tiers import HostTier


class ExpertPipeline:
    """Drives a tier for layers that are called one after the other, again and again.

    Args:
        tier: where experts are held.
        layers: L.
        predictor: what to ask about the next layer; None for on-demand only.
        gate: what decides which guesses are loaded.
        ahead: how many experts are guessed at most; None for as many as the probabilities add up to.

    Attributes:
        residual: the residual stream that entered the coming layer's norm, when somebody notes it here.
    """

    def __init__(
        self,
        tier: HostTier,
        layers: int,
        *,
        predictor: Predictor | None = None,
        gate: CostGate | None = None,
        ahead: int | None = None,
    ) -> None:
        self.tier = tier
        self.layers = layers
        self.predictor = predictor
        self.gate = CostGate() if gate is None else gate
        self.ahead = ahead
        self.residual: Tensor | None = None
        self.num_experts = 1 + max(key.expert for key in tier.store.layout.keys)
        self._ready_at: float | None = None
        self._loads, self._read_seconds = 0, 0.0
        self._guessed: tuple[int, list[tuple[int, float]]] = (-1, [])
        # A decoder's last layer is followed by its first one, not by the encoder's.
        self._follows: dict[int, int] = {}
        self._last = -1

    def acquire(self, layer: int, wanted: Sequence[int], experts: np.ndarray | None, last: bool = True) -> list[int]:
        """Get a layer's experts into slots and start guesses for the next layer.

        Args:
            layer: the layer that was routed.
            wanted: the distinct experts to hold until `release`.
            experts: (T, K), the whole routing, the first time that the layer asks in this pass; None after that.
            last: whether the layer asks for nothing more in this pass.

        Returns:
            The slot of each wanted expert.
        """
        keys = [ExpertKey(layer, expert) for expert in wanted]
        now = time.perf_counter()
        if self._ready_at is not None and experts is not None:
            self.gate.record_compute(now - self._ready_at)
        if experts is not None:
            self.tier.routed(layer, experts, self.num_experts)
        self.gate.record_demand(self.tier.demand(keys) > 0)
        try:
            if last:
                self.tier.retire(layer)
            if experts is not None and self.predictor is not None:
                self._speculate(self.predictor, layer, experts)
            slots = self.tier.wait(keys)
        except BaseException:
            self.tier.release(keys)
            raise
        self._ready_at = time.perf_counter()
        return slots

    def release(self, layer: int, wanted: Sequence[int]) -> None:
        """Let the experts of `acquire` go."""
        self.tier.release([ExpertKey(layer, expert) for expert in wanted])

    def reset(self) -> None:
        """Begin another sequence; what is resident stays."""
        self._ready_at = None
        self.residual = None
        if self.predictor is not None:
            self.predictor.reset()

    def _speculate(self, predictor: Predictor, layer: int, experts: np.ndarray) -> None:
        begin = time.perf_counter()
        stats = self.tier.stats
        if stats.loads > self._loads:
            self.gate.record_load((stats.read_seconds - self._read_seconds) / (stats.loads - self._loads))
        self._loads, self._read_seconds = stats.loads, stats.read_seconds
        if self._last >= 0:
            self._follows[self._last] = layer
        self._last = layer
        layer_guessed, candidates = self._guessed
        if layer_guessed == layer and candidates:
            used = set(experts.reshape(-1).tolist())
            self.gate.record_outcomes([(p, expert in used) for expert, p in candidates])
            self._guessed = (-1, [])
        predictor.observe(Observation(layer, experts, self.residual))
        self.residual = None  # It was this layer's alone.
        if self.tier.guided:
            again = predictor.predict(layer)
            if again is not None:
                self.tier.expect(layer, again)
        if not self.gate.worth_predicting():
            stats.predict_seconds += time.perf_counter() - begin
            return
        target = self._follows.get(layer, (layer + 1) % self.layers)
        chances = predictor.predict(target)
        if chances is not None:
            candidates = self._candidates(target, chances)
            self._guessed = (target, candidates)
            self.tier.speculate((ExpertKey(target, e), p) for e, p in self.gate.choose(candidates))
        seconds = time.perf_counter() - begin
        stats.predict_seconds += seconds
        self.gate.record_predict(seconds)

    def _candidates(self, layer: int, chances: np.ndarray) -> list[tuple[int, float]]:
        return self.tier.candidates(layer, chances, self.ahead)
