"""A tier that holds no experts: slots, a link and a clock that only count.

Time is in units of a layer's compute, C = 1. One link carries one expert after the other, L = `ratio` each: demands
first, then guesses, likeliest first; what is under way is finished. A run is exact and repeatable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..stats import TransferStats
from ..store import ExpertKey
from ..tiers import EvictionPolicy
from ..tiers.candidates import worth_a_slot
from ..tiers.queue import TransferQueue


class EmulatedTier:
    """What `HostTier` does, without bytes or threads; an expert counts as one byte.

    Args:
        slots: how many experts fit.
        num_experts: E.
        ratio: time to load an expert over a layer's compute.
        policy: order of eviction.
        keep: with False experts go as soon as their layer is done.

    Attributes:
        now: the time, in units of a layer's compute; whoever computes adds to it.
        stats: counts since the start.
    """

    def __init__(self, slots: int, num_experts: int, ratio: float, policy: EvictionPolicy, keep: bool = True) -> None:
        self.now = 0.0
        self.stats = TransferStats()
        self._num_experts = num_experts
        self._keep = keep
        self._policy = policy
        self._ratio = ratio
        self._free = slots
        # Whether what has a slot is there, or still on its way.
        self._entries: dict[ExpertKey, bool] = {}
        self._guesses: set[ExpertKey] = set()
        self._queue = TransferQueue()
        self._carried: tuple[ExpertKey, float] | None = None
        self._pins: set[ExpertKey] = set()

    @property
    def num_experts(self) -> int:
        return self._num_experts

    @property
    def reading(self) -> int:
        return int(self._carried is not None)

    @property
    def guided(self) -> bool:
        return getattr(self._policy, "guided", False)

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        self._policy.routed(layer, experts, num_experts)

    def expect(self, layer: int, chances: np.ndarray) -> None:
        self._policy.expect(layer, chances)

    def rank(self, layer: int, worth: np.ndarray) -> None:
        self._policy.rank(layer, worth)

    def candidates(self, layer: int, chances: np.ndarray, ahead: int | None = None) -> list[tuple[int, float]]:
        def absent(keys: Iterable[ExpertKey]) -> list[ExpertKey]:
            return [key for key in keys if key not in self._entries]

        return worth_a_slot(layer, chances, absent, self._free, self._policy, ahead)

    def demand(self, keys: Sequence[ExpertKey]) -> int:
        self._advance(self.now)
        self._pins = set(keys)
        stats = self.stats
        stats.requests += len(keys)
        missed = 0
        for key in keys:
            there = self._entries.get(key)
            if there is None:
                missed += 1
                self._queue.put(key, demand=True)
                continue
            guess = key in self._guesses
            if there:
                stats.hits += 1
                stats.prefetched += guess
                self._policy.touch(key)
            else:
                stats.late += 1
            self._guesses.discard(key)
            stats.useful_bytes += guess
        stats.misses += missed
        self._advance(self.now)
        return missed

    def retire(self, layer: int) -> None:
        self.stats.cancelled += self._queue.cancel_where(lambda key: key.layer == layer)
        for key in self._guesses:
            if key.layer == layer and self._entries[key]:
                self._policy.demote(key)

    def speculate(self, guesses: Iterable[tuple[ExpertKey, float]]) -> None:
        for key, probability in guesses:
            if key not in self._entries:
                self._queue.put(key, demand=False, probability=probability)
        self._advance(self.now)

    def wait(self, keys: Sequence[ExpertKey]) -> list[int]:
        begin = self.now
        self._advance(self.now)
        while not all(self._entries.get(key) for key in keys):
            assert self._carried is not None, "a layer waits for what nobody carries"
            self.now = max(self.now, self._carried[1])
            self._advance(self.now)
        self.stats.stall_seconds += self.now - begin
        return [0] * len(keys)

    def release(self, keys: Iterable[ExpertKey]) -> None:
        # The link carried guesses while the layer computed; its experts stay until it is done.
        self._advance(self.now)
        self._pins = set()
        if not self._keep:
            for key in keys:
                self._evict(key)

    def _advance(self, to: float) -> None:
        """Let the link work until a time."""
        at = to
        while True:
            if self._carried is None and not self._start(at):
                return
            assert self._carried is not None
            key, end = self._carried
            if end > to:
                return
            self._entries[key] = True
            self._policy.insert(key)
            self.stats.loads += 1
            self.stats.read_seconds += self._ratio
            self._carried, at = None, end

    def _start(self, at: float) -> bool:
        """Begin the next transfer, if there is one and a slot for it."""
        if not len(self._queue):
            return False
        victim = None
        if self._free == 0:
            victim = self._policy.victim(self._pins)
            if victim is None:
                return False
        request = self._queue.take()
        if request is None:
            return False
        if victim is not None:
            self._evict(victim)
        self._free -= 1
        self._entries[request.key] = False
        if not request.demand:
            self._guesses.add(request.key)
            self.stats.speculative_loads += 1
        self._carried = (request.key, at + self._ratio)
        return True

    def _evict(self, key: ExpertKey) -> None:
        del self._entries[key]
        self._policy.remove(key)
        if key in self._guesses:
            self._guesses.discard(key)
            self.stats.wasted_bytes += 1
        self._free += 1
