"""What happens around one layer's experts: demand, predict the next layer, wait, run, release.

The prediction is made while the demanded experts are on their way, and its loads begin behind theirs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from specmoe.speculation import CostGate, Observation, Predictor

from ..store import ExpertKey
from ..tiers.interface import Tier
from .prefetch import Prefetcher


class ExpertPipeline:
    """Drives a tier for layers that are called one after the other, again and again.

    Args:
        tier: where experts are held.
        layers: L.
        predictor: what to ask about the next layer; None for on-demand only.
        gate: what decides which guesses are loaded.
        ahead: how many experts are guessed at most; None for as many as the probabilities add up to.
        clock: the time in seconds.

    Attributes:
        residual: the residual stream that entered the coming layer's norm, when somebody notes it here.
    """

    def __init__(
        self,
        tier: Tier,
        layers: int,
        *,
        predictor: Predictor | None = None,
        gate: CostGate | None = None,
        ahead: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tier = tier
        self.layers = layers
        self.predictor = predictor
        self.gate = CostGate() if gate is None else gate
        self.residual: Tensor | None = None
        self.num_experts = tier.num_experts
        self._clock = clock
        self._ready_at: float | None = None
        self._loads = 0
        # How many tokens each layer was last asked for.
        self._rows: dict[int, int] = {}
        self._prefetcher: Prefetcher | None = None
        if predictor is not None:
            self._prefetcher = Prefetcher(tier, layers, predictor, self.gate, ahead, clock)

    @property
    def watching(self) -> bool:
        """Whether what this pass routes is told to a predictor."""
        return self._prefetcher is not None and self._prefetcher.watching

    def begin(self, tokens: np.ndarray | None) -> None:
        """A pass over these tokens (T,), None where they are unknown, begins.

        Where nobody calls this, a pass begins with a layer that is not below the last, and is predicted from the past.
        """
        if self._prefetcher is not None:
            self._prefetcher.begin(tokens)

    def acquire(
        self,
        layer: int,
        wanted: Sequence[int],
        experts: np.ndarray | None,
        last: bool = True,
        weights: np.ndarray | None = None,
    ) -> list[int]:
        """Get a layer's experts into slots and start guesses for the next layer.

        Args:
            layer: the layer that was routed.
            wanted: the distinct experts to hold until `release`.
            experts: (T, K), the whole routing, the first time that the layer asks in this pass; None after that.
            last: whether the layer asks for nothing more in this pass.
            weights: (T, K), the routing weights, where they are known.

        Returns:
            The slot of each wanted expert.
        """
        keys = [ExpertKey(layer, expert) for expert in wanted]
        gate, stats = self.gate, self.tier.stats
        # What a pass costs depends on its tokens: only one of as many as before says what the next one will.
        steady = experts is not None and self._rows.get(layer) == len(experts)
        if experts is not None:
            self._record_window(layer, steady)
            self._rows[layer] = len(experts)
            self.tier.routed(layer, experts, self.num_experts)
        covered = stats.prefetched + stats.late
        missed = self.tier.demand(keys)
        try:
            if steady:
                gate.record_demand(missed > 0)
                gate.record_need(missed + stats.prefetched + stats.late - covered)
            if last:
                self.tier.retire(layer)
            if experts is not None and self._prefetcher is not None:
                self._prefetcher.routed(Observation(layer, experts, self.residual, weights), steady)
                self.residual = None  # It was this layer's alone.
            slots = self.tier.wait(keys)
        except BaseException:
            self.tier.release(keys)
            raise
        self._ready_at, self._loads = self._clock(), stats.loads
        return slots

    def _record_window(self, layer: int, steady: bool) -> None:
        """Tell the gate how long the model computed since the layer before had its experts."""
        if self._ready_at is None:
            return
        seconds = self._clock() - self._ready_at
        if not steady:
            self.gate.record_unlike(seconds)
            return
        # What is still being loaded has slowed this window too.
        loads = self.tier.reading + self.tier.stats.loads - self._loads
        self.gate.record_compute(seconds, loads, layer)

    def release(self, layer: int, wanted: Sequence[int]) -> None:
        """Let the experts of `acquire` go."""
        self.tier.release([ExpertKey(layer, expert) for expert in wanted])

    def reset(self) -> None:
        """Begin another sequence; what is resident stays."""
        self._ready_at = None
        self.residual = None
        if self._prefetcher is not None:
            self._prefetcher.reset()
