"""The arms on recorded routes against a clock that only counts: no expert is read and none computed.

The engine's own pipeline, gate, queue and policies drive an `EmulatedTier`: a layer asks for its experts, predicts
(while they are on their way), waits, and computes for a time of 1. A run is exact and repeatable, and says nothing
about a disk's or a processor's spread.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from specmoe.speculation import CostGate

from ..engine import ExpertPipeline
from ..stats import TransferStats
from ..tiers import EvictionPolicy
from .emulated_tier import EmulatedTier
from .foresight import Chances, Foreseen, ForeseenRanks, foresee, oracle_chances

__all__ = ["RATIOS", "Chances", "Emulated", "emulate", "foresee", "oracle_chances"]
RATIOS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
# Of a predictor's time, the part that is spent whether or not it is asked about the next layer.
WATCHING = 0.6


@dataclass
class Emulated:
    """What a run came to.

    Args:
        seconds: in units of a layer's compute, for all tokens that count.
        tokens: how many those are.
        requests, hits, late, misses: experts that were wanted; there; under way as guesses; demanded.
        loads: transfers that were finished.
        guesses: speculative transfers that were begun.
        useful: of those, the ones that were used.
    """

    seconds: float = 0.0
    tokens: int = 0
    requests: int = 0
    hits: int = 0
    late: int = 0
    misses: int = 0
    loads: int = 0
    guesses: int = 0
    useful: int = 0

    @classmethod
    def of(cls, seconds: float, tokens: int, stats: TransferStats) -> Emulated:
        """Return what the counts of a tier say, where an expert is one byte."""
        asked = (stats.requests, stats.hits, stats.late, stats.misses)
        return cls(seconds, tokens, *asked, stats.loads, stats.speculative_loads, stats.useful_bytes)

    @property
    def per_token(self) -> float:
        return self.seconds / self.tokens

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


def emulate(
    routes: np.ndarray,
    num_experts: int,
    slots: int,
    ratio: float,
    policy: EvictionPolicy,
    *,
    chances: Chances | None = None,
    gated: bool = True,
    keep: bool = True,
    predict: float = 0.01,
    warm: int = 0,
    next_use: Callable[[int], None] | None = None,
) -> Emulated:
    """Run one arm.

    Args:
        routes: (N, L, K).
        num_experts: E.
        slots: experts in memory, of all layers together; at least K.
        ratio: time to load an expert over a layer's compute.
        policy: order of eviction, of the engine's kind.
        chances: of the predictor; None loads on demand only.
        gated: whether guesses are priced.
        keep: with False experts go as soon as their layer is done.
        predict: time of the predictor over a layer's compute: a part of it in every layer of a pass that the predictor
            is told of, the rest where it is asked.
        warm: tokens at the beginning that do not count.
        next_use: told the position (token times L plus layer) before each layer; for a policy that knows the future.
    """
    N, L, _ = routes.shape
    tier = EmulatedTier(slots, num_experts, ratio, policy, keep)
    said = None if chances is None else _foreseen(chances, tier, predict)
    gate = CostGate(enabled=gated)
    pipeline = ExpertPipeline(tier, L, predictor=said, gate=gate, clock=tier.clock)
    begin, earlier = 0.0, tier.stats.copy()
    for token in range(N):
        if token == warm:
            begin, earlier = tier.now, tier.stats.copy()
        if said is not None:
            said.at(token)
        for layer in range(L):
            experts = routes[token, layer].astype(np.int64)
            if next_use is not None:
                next_use(token * L + layer)
            wanted = list(dict.fromkeys(experts.tolist()))
            pipeline.acquire(layer, wanted, experts[None])
            tier.now += 1.0
            pipeline.release(layer, wanted)
    return Emulated.of(tier.now - begin, N - warm, tier.stats.since(earlier))


def _foreseen(chances: Chances, tier: EmulatedTier, predict: float) -> Foreseen:
    def spend(seconds: float) -> None:
        tier.now += seconds

    kind = Foreseen if chances.keep is None else ForeseenRanks
    return kind(chances, spend, WATCHING * predict, (1.0 - WATCHING) * predict)
