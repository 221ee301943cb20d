"""What a predictor is asked and told along a pass, and what comes of its answers: guesses to load, experts to keep.

The same code runs against disks (`HostTier`) and against the clock that only counts (`bench.emulated_tier`).

Letters: T tokens of a pass, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from specmoe.speculation import CostGate, Observation, Predictor, RanksExperts, SeesTokens

from ..store import ExpertKey
from ..tiers.interface import Tier


class Prefetcher:
    """Asks a predictor while a layer's own experts are on their way, and queues what pays behind them.

    Where even a perfect predictor would save less than it costs, it is left alone for whole passes.

    Args:
        tier: where experts are held.
        layers: L.
        predictor: what to ask.
        gate: what decides which guesses are loaded, and whether the predictor is asked at all.
        ahead: how many experts are guessed at most; None for as many as the probabilities add up to.
        clock: the time in seconds.
    """

    def __init__(
        self,
        tier: Tier,
        layers: int,
        predictor: Predictor,
        gate: CostGate,
        ahead: int | None,
        clock: Callable[[], float],
    ) -> None:
        self._tier, self._layers = tier, layers
        self._predictor, self._gate = predictor, gate
        self._ahead, self._clock = ahead, clock
        self._ranks = predictor if isinstance(predictor, RanksExperts) else None
        self._loads, self._read_seconds = 0, 0.0
        self._guessed: dict[int, list[tuple[int, float]]] = {}
        # A decoder's last layer is followed by its first one, not by the encoder's.
        self._follows: dict[int, int] = {}
        self._last = -1
        self._first = 0
        self._begun = False
        # Whether the predictor is told of the pass that runs.
        self.watching = True
        # Seconds that its beginning took, until they are told to the gate.
        self._opening = 0.0

    def reset(self) -> None:
        """Begin another sequence."""
        self._guessed.clear()
        self._begun = False
        self._predictor.reset()

    def begin(self, tokens: np.ndarray | None) -> None:
        """A pass begins: the first layer can be guessed again where its tokens (T,) are known."""
        self._begun, self.watching = True, self._gate.worth_watching()
        if not self.watching or tokens is None or not isinstance(self._predictor, SeesTokens):
            return
        begin = self._clock()
        self._predictor.begin(tokens)
        if self._gate.worth_predicting():
            self._guess(self._first)
        self._opening = self._clock() - begin
        self._tier.stats.predict_seconds += self._opening

    def routed(self, observation: Observation, steady: bool = True) -> None:
        """A layer was routed and has demanded its experts.

        Args:
            observation: what the predictor is told.
            steady: whether the pass is like the one before, so that what the predictor takes is worth noting.
        """
        layer = observation.layer
        begin = self._clock()
        if layer <= self._last:
            self._first = layer
            if not self._begun:
                self.watching = self._gate.worth_watching()
        self._begun = False
        self._learn(layer, observation.experts)
        if self._last >= 0:
            self._follows[self._last] = layer
        self._last = layer
        opening, self._opening = self._opening, 0.0
        if not self.watching:
            return
        self._predictor.observe(observation)
        self._advise(layer)
        watched = self._clock()
        if steady:
            self._gate.record_watch(opening + watched - begin)
        if self._gate.worth_predicting():
            self._guess(self._follows.get(layer, (layer + 1) % self._layers))
            if steady:
                self._gate.record_predict(self._clock() - watched)
        self._tier.stats.predict_seconds += self._clock() - begin

    def _learn(self, layer: int, experts: np.ndarray) -> None:
        """Tell the gate what loads took, and which candidates came true."""
        stats = self._tier.stats
        if stats.loads > self._loads:
            self._gate.record_load((stats.read_seconds - self._read_seconds) / (stats.loads - self._loads))
        self._loads, self._read_seconds = stats.loads, stats.read_seconds
        candidates = self._guessed.pop(layer, None)
        if candidates:
            used = set(experts.reshape(-1).tolist())
            self._gate.record_outcomes([(p, expert in used) for expert, p in candidates])

    def _advise(self, layer: int) -> None:
        """Tell the tier what is worth keeping of the layer that was just routed."""
        if not self._tier.guided:
            return
        if self._ranks is not None:
            worth = self._ranks.keep(layer)
            if worth is not None:
                self._tier.rank(layer, worth)
            return
        again = self._predictor.predict(layer)
        if again is not None:
            self._tier.expect(layer, again)

    def _guess(self, layer: int) -> None:
        """Queue the experts of a coming layer that are worth loading ahead."""
        chances = self._predictor.predict(layer)
        if chances is None:
            return
        candidates = self._tier.candidates(layer, chances, self._ahead)
        self._guessed[layer] = candidates
        self._tier.speculate((ExpertKey(layer, e), p) for e, p in self._gate.choose(candidates, layer))
