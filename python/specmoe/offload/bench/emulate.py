"""The arms on recorded routes against a clock that only counts: no expert is read and none computed.

Time is in units of a layer's compute, C = 1. One link carries one expert after the other, L = `ratio` each: demands
first, then guesses, likeliest first; what is under way is finished. A layer asks for its experts, predicts (`predict`,
while they are on their way), waits, and computes. The same policies, predictors and cost gate as in the engine decide;
a run is exact and repeatable, and says nothing about a disk's or a processor's spread.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from specmoe.speculation import CostGate, Observation, Predictor

from ..store import ExpertKey
from ..tiers import EvictionPolicy
from ..tiers.candidates import worth_a_slot
from ..tiers.queue import TransferQueue

RATIOS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Chances:
    """What a predictor said along a trace, whatever was in memory.

    Args:
        ahead: (N, L, E): after layer l of token n was routed, the chances for the layer that comes next; NaN: none.
        again: (N, L, E): then too, the chances for layer l itself at its next visit; NaN: none.
    """

    ahead: np.ndarray
    again: np.ndarray


@dataclass
class Emulated:
    """What a run came to.

    Args:
        seconds: in units of a layer's compute, for all tokens that count.
        tokens: how many those are.
        requests, hits, late, misses: experts that were wanted; there; under way as guesses; demanded.
        loads: transfers that were begun.
        guesses: of them, speculative ones.
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

    @property
    def per_token(self) -> float:
        return self.seconds / self.tokens

    @property
    def hit_rate(self) -> float:
        return self.hits / self.requests if self.requests else 0.0


def foresee(predictor: Predictor, routes: np.ndarray, num_experts: int, starts: Sequence[int] = ()) -> Chances:
    """Run a predictor along routes (N, L, K) and note what it says; `starts` are the tokens that begin a sequence."""
    N, L, _ = routes.shape
    ahead = np.full((N, L, num_experts), np.nan, dtype=np.float32)
    again = ahead.copy()
    begins = set(starts)
    predictor.reset()
    for token in range(N):
        if token in begins:
            predictor.reset()
        for layer in range(L):
            predictor.observe(Observation(layer, routes[token, layer][None]))
            for table, target in ((again, layer), (ahead, (layer + 1) % L)):
                chances = predictor.predict(target)
                if chances is not None:
                    table[token, layer] = chances
    return Chances(ahead, again)


def oracle_chances(routes: np.ndarray, num_experts: int) -> Chances:
    """Return certainty about the layer that comes next, and nothing about the one after a whole token."""
    N, L, K = routes.shape
    flat = np.concatenate([routes.reshape(N * L, K)[1:], routes.reshape(N * L, K)[:1]]).astype(np.int64)
    ahead = np.zeros((N * L, num_experts), dtype=np.float32)
    np.put_along_axis(ahead, flat, 1.0, axis=1)
    return Chances(ahead.reshape(N, L, num_experts), np.full((N, L, num_experts), np.nan, dtype=np.float32))


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
        predict: time of a prediction over a layer's compute; charged whenever the predictor is asked.
        warm: tokens at the beginning that do not count.
        next_use: told the position (token times L plus layer) before each layer; for a policy that knows the future.
    """
    run = _Run(slots, ratio, policy, chances is not None and gated)
    N, L, _ = routes.shape
    result, begin = Emulated(tokens=N - warm), 0.0
    guessed: list[tuple[int, float]] = []
    for token in range(N):
        if token == warm:
            begin, run.counts = run.now, Emulated(tokens=N - warm)
        for layer in range(L):
            wanted = routes[token, layer].astype(np.int64)
            if next_use is not None:
                next_use(token * L + layer)
            policy.routed(layer, wanted[None], num_experts)
            keys = [ExpertKey(layer, e) for e in dict.fromkeys(wanted.tolist())]
            run.demand(keys)
            run.retire(layer)
            if chances is not None:
                used = set(wanted.tolist())
                run.gate.record_outcomes([(p, e in used) for e, p in guessed])
                guessed = []
                again = chances.again[token, layer]
                if getattr(policy, "guided", False) and not math.isnan(again[0]):
                    policy.expect(layer, again)
                if run.gate.worth_predicting():
                    run.now += predict
                    run.gate.record_predict(predict)
                    ahead = chances.ahead[token, layer]
                    if not math.isnan(ahead[0]):
                        guessed = run.speculate((layer + 1) % L, ahead)
            run.wait(keys)
            run.now += 1.0
            run.gate.record_compute(1.0)
            run.release(keys, keep)
    result = run.counts
    result.seconds = run.now - begin
    return result


class _Run:
    """The link, the slots and the clock of one run."""

    def __init__(self, slots: int, ratio: float, policy: EvictionPolicy, gated: bool) -> None:
        self.now = 0.0
        self.counts = Emulated()
        self.gate = CostGate(enabled=gated)
        self._policy = policy
        self._ratio = ratio
        self._free = slots
        self._resident: dict[ExpertKey, bool] = {}
        self._guess: set[ExpertKey] = set()
        self._queue = TransferQueue()
        self._carried: tuple[ExpertKey, float] | None = None
        self._pinned: set[ExpertKey] = set()

    def demand(self, keys: list[ExpertKey]) -> None:
        self._advance(self.now)
        self._pinned = set(keys)
        missed = 0
        counts = self.counts
        counts.requests += len(keys)
        for key in keys:
            there = self._resident.get(key)
            if there is None:
                counts.misses += 1
                missed += 1
                self._queue.put(key, demand=True)
                continue
            if there:
                counts.hits += 1
                self._policy.touch(key)
            else:
                counts.late += 1
            if key in self._guess:
                self._guess.discard(key)
                counts.useful += 1
        self.gate.record_demand(missed > 0)
        self._advance(self.now)

    def retire(self, layer: int) -> None:
        self._queue.cancel_where(lambda key: key.layer == layer)
        for key in [k for k in self._guess if k.layer == layer]:
            if self._resident[key]:
                self._policy.demote(key)

    def speculate(self, layer: int, chances: np.ndarray) -> list[tuple[int, float]]:
        def absent(keys: Iterable[ExpertKey]) -> list[ExpertKey]:
            return [key for key in keys if key not in self._resident]

        candidates = worth_a_slot(layer, chances, absent, self._free, self._policy)
        for e, p in self.gate.choose(candidates):
            self._queue.put(ExpertKey(layer, e), demand=False, probability=p)
        return candidates

    def wait(self, keys: list[ExpertKey]) -> None:
        self._advance(self.now)
        while not all(self._resident.get(key) for key in keys):
            assert self._carried is not None, "a layer waits for what nobody carries"
            self.now = max(self.now, self._carried[1])
            self._advance(self.now)

    def release(self, keys: list[ExpertKey], keep: bool) -> None:
        # The link carries guesses while the layer computes; its experts stay until it is done.
        self._advance(self.now)
        self._pinned = set()
        if not keep:
            for key in keys:
                self._evict(key)

    def _advance(self, to: float) -> None:
        while True:
            if self._carried is None:
                if not self._start(to):
                    return
                continue
            key, end = self._carried
            if end > to:
                return
            self._resident[key] = True
            self._policy.insert(key)
            self.gate.record_load(self._ratio)
            self._carried = None
            self._start(end)

    def _start(self, at: float) -> bool:
        if not len(self._queue):
            return False
        victim = None
        if self._free == 0:
            victim = next((k for k in self._policy.order() if k not in self._pinned), None)
            if victim is None:
                return False
        request = self._queue.take()
        if request is None:
            return False
        if victim is not None:
            self._evict(victim)
        self._free -= 1
        self._resident[request.key] = False
        self.counts.loads += 1
        if not request.demand:
            self._guess.add(request.key)
            self.counts.guesses += 1
        self._carried = (request.key, at + self._ratio)
        return True

    def _evict(self, key: ExpertKey) -> None:
        del self._resident[key]
        self._policy.remove(key)
        self._guess.discard(key)
        self._free += 1
