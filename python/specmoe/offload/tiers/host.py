"""Host memory: slots filled by background readers, shared by what layers demand and what speculation guesses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..stats import TransferStats
from ..store import ExpertKey, ExpertStore, StoreError
from .candidates import worth_a_slot
from .eviction import LRU, EvictionPolicy
from .queue import Request, TransferQueue
from .slots import SlotPool

DEFAULT_LANES = 3


@dataclass
class _Entry:
    """An expert that has a slot.

    `guess` holds until the first use; `stale` marks a guess whose layer went by while it was still being read.
    """

    slot: int
    guess: bool
    ready: bool = False
    stale: bool = False


class HostTier:
    """A cache of experts in host memory with a byte budget, and the threads that fill it.

    A layer calls `demand`, then `wait`, runs, then `release`; in between `speculate` may queue guesses. An expert that
    is demanded and not released, or is being read, is never evicted. One lane is kept free of guesses.

    Args:
        store: where the experts are.
        slots: how many experts fit.
        policy: order of eviction; LRU by default.
        lanes: reader threads.
        keep: with False an expert is dropped as soon as it is released: no cache.

    Attributes:
        stats: counts since the start.
    """

    def __init__(
        self,
        store: ExpertStore,
        slots: int,
        *,
        policy: EvictionPolicy | None = None,
        lanes: int = DEFAULT_LANES,
        keep: bool = True,
    ) -> None:
        if lanes < 1:
            raise ValueError(f"HostTier: lanes: expected at least 1, got {lanes}")
        self.store = store
        self.pool = SlotPool(store.layout, slots)
        self.keep = keep
        self.stats = TransferStats()
        self._lock = threading.Lock()
        # Lanes wait for the one, layers for the other: a single condition would wake everybody for everything.
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._policy = LRU() if policy is None else policy
        self._entries: dict[ExpertKey, _Entry] = {}
        self._guesses: set[ExpertKey] = set()
        self._free = list(range(slots))[::-1]
        self._pins: dict[ExpertKey, int] = {}
        self._failed: dict[ExpertKey, StoreError] = {}
        self._queue = TransferQueue()
        self._reading = 0
        self._guesses_reading = 0
        self._max_guesses = max(1, lanes - 1)
        self._read_mark = 0.0
        self._closed = False
        self._lanes = [threading.Thread(target=self._lane, name=f"specmoe-lane-{i}", daemon=True) for i in range(lanes)]
        for lane in self._lanes:
            lane.start()

    @property
    def slots(self) -> int:
        return self.pool.count

    @property
    def num_experts(self) -> int:
        """The most experts that a layer of the store has."""
        return 1 + max(key.expert for key in self.store.layout.keys)

    @property
    def reading(self) -> int:
        """How many experts are being read."""
        return self._reading

    def resident(self, key: ExpertKey) -> bool:
        """Whether the expert is there, or on its way."""
        with self._lock:
            return key in self._entries

    def absent(self, keys: Iterable[ExpertKey]) -> list[ExpertKey]:
        """Return those that are neither there nor on their way."""
        with self._lock:
            return [key for key in keys if key not in self._entries]

    def resident_experts(self, layer: int, num_experts: int) -> np.ndarray:
        """Return (E,) bool: which experts of a layer are there, or on their way."""
        with self._lock:
            return np.fromiter((ExpertKey(layer, e) in self._entries for e in range(num_experts)), bool, num_experts)

    @property
    def guided(self) -> bool:
        """Whether the policy makes use of `expect` and `rank`."""
        return getattr(self._policy, "guided", False)

    def routed(self, layer: int, experts: np.ndarray, num_experts: int) -> None:
        """Tell the policy which experts (T, K) a layer uses now, before they are demanded."""
        with self._lock:
            self._policy.routed(layer, experts, num_experts)

    def expect(self, layer: int, chances: np.ndarray) -> None:
        """Tell the policy how likely each expert (E,) of a layer that was routed is to be used there next."""
        with self._lock:
            self._policy.expect(layer, chances)

    def rank(self, layer: int, worth: np.ndarray) -> None:
        """Tell the policy how soon each expert (E,) of a layer that was routed is used again."""
        with self._lock:
            self._policy.rank(layer, worth)

    def candidates(self, layer: int, chances: np.ndarray, ahead: int | None = None) -> list[tuple[int, float]]:
        """Return the experts of a layer that are worth a slot, with their chances (see `worth_a_slot`)."""
        with self._lock:
            return worth_a_slot(
                layer,
                chances,
                lambda keys: [key for key in keys if key not in self._entries],
                len(self._free),
                self._policy,
                ahead,
            )

    def demand(self, keys: Sequence[ExpertKey]) -> int:
        """Ask for experts, and hold them until `release`; distinct keys, at most as many as there are slots.

        Returns:
            How many of them have to be loaded now.
        """
        if len(keys) > self.pool.count:
            raise ValueError(f"demand: keys: expected at most {self.pool.count} experts, got {len(keys)}")
        held: list[ExpertKey] = []
        try:
            with self._lock:
                self._require_open()
                self.stats.requests += len(keys)
                missed = 0
                for key in keys:
                    self._pins[key] = self._pins.get(key, 0) + 1
                    held.append(key)
                    self._failed.pop(key, None)
                    missed += self._ask(key)
                self.stats.misses += missed
                self._work.notify(missed)
            if missed:
                # Let the lanes have the interpreter: their reads begin now, not when the caller next waits.
                time.sleep(0)
        except BaseException:
            # Ctrl-C may come anywhere: whoever gets no answer holds nothing.
            self.release(held)
            raise
        return missed

    def _ask(self, key: ExpertKey) -> bool:
        """Count a demand, and queue it where the expert is not there or on its way; return whether it was."""
        entry, stats = self._entries.get(key), self.stats
        if entry is None:
            self._queue.put(key, demand=True)
            return True
        if entry.ready:
            stats.hits += 1
            stats.prefetched += entry.guess
            self._policy.touch(key)
        else:
            stats.late += 1
            if entry.guess:
                # A layer waits for it now: other guesses must not stand before it.
                self.store.hurry(key)
            stats.late_bytes += self.store.layout.stored_bytes if entry.guess else 0
        if entry.guess:
            entry.guess = False
            self._guesses.discard(key)
            stats.useful_bytes += self.store.layout.stored_bytes
        return False

    def wait(self, keys: Sequence[ExpertKey]) -> list[int]:
        """Wait until demanded experts are there; return their slots.

        Raises:
            StoreError: an expert could not be read; the message names it.
        """
        with self._lock:
            if not self._all_ready(keys):
                begin = time.perf_counter()
                try:
                    while not self._all_ready(keys):
                        self._done.wait()
                finally:
                    self.stats.stall_seconds += time.perf_counter() - begin
            return [self._entries[key].slot for key in keys]

    def _all_ready(self, keys: Sequence[ExpertKey]) -> bool:
        self._require_open()
        ready = True
        for key in keys:
            if key in self._failed:
                raise self._failed[key]
            entry = self._entries.get(key)
            ready = ready and entry is not None and entry.ready
        return ready

    def release(self, keys: Iterable[ExpertKey]) -> None:
        """Let demanded experts go: they may be evicted from now on."""
        with self._lock:
            for key in keys:
                self._pins[key] -= 1
                if self._pins[key]:
                    continue
                del self._pins[key]
                self._queue.abandon(key)
                entry = self._entries.get(key)
                if not self.keep and entry is not None and entry.ready:
                    self._evict(key)
            self._offer_slots()

    def speculate(self, guesses: Iterable[tuple[ExpertKey, float]]) -> None:
        """Queue guesses, each with its probability of use; those resident or queued already are skipped."""
        with self._lock:
            self._require_open()
            added = 0
            for key, probability in guesses:
                if key not in self._entries:
                    added += self._queue.put(key, demand=False, probability=probability)
            self._work.notify(added)

    def retire(self, layer: int) -> None:
        """Note that a layer has got its experts: guesses for it that are still open or unused were wrong."""
        with self._lock:
            self.stats.cancelled += self._queue.cancel_where(lambda key: key.layer == layer)
            for key in [k for k in self._guesses if k.layer == layer]:
                if self._entries[key].ready:
                    self._policy.demote(key)
                else:
                    self._entries[key].stale = True

    def reset(self, *, keep: bool | None = None, policy: EvictionPolicy | None = None) -> None:
        """Empty the cache and zero the counts; whatever is being read is waited for."""
        with self._lock:
            if self._pins:
                raise RuntimeError("reset: some experts are in use")
            self._queue.clear()
            while self._reading:
                self._done.wait()
            for key in list(self._entries):
                self._evict(key)
            self.keep = self.keep if keep is None else keep
            self._policy = self._policy if policy is None else policy
            self._failed.clear()
            self.stats = TransferStats()

    def settle(self) -> TransferStats:
        """Drop what is queued, wait for what is being read, and count unused guesses as wasted; return the counts."""
        with self._lock:
            self.stats.cancelled += self._queue.cancel_where(lambda _: True)
            while self._reading:
                self._done.wait()
            for key in self._guesses:
                self._entries[key].guess = False
                self.stats.wasted_bytes += self.store.layout.stored_bytes
            self._guesses.clear()
            return self.stats.copy()

    def close(self) -> None:
        """Stop the lanes; the reads under way are finished first. May be called twice."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._work.notify_all()
            self._done.notify_all()
        for lane in self._lanes:
            lane.join()

    def __enter__(self) -> HostTier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError("HostTier: it was closed")

    def _lane(self) -> None:
        while True:
            with self._lock:
                started = self._start()
                while started is None:
                    if self._closed:
                        return
                    self._work.wait()
                    started = self._start()
            request, slot = started
            failure: StoreError | None = None
            retries = 0
            try:
                self.store.file.in_background(not request.demand)
                retries = self.store.read_into(request.key, self.pool.slot(slot))
                self.pool.settle(slot)
            except StoreError as error:
                failure = error
            except Exception as error:
                # A lane that died would leave its layer waiting for ever: whatever went wrong is the waiter's to raise.
                failure = StoreError(f"store {self.store.path}: {request.key} cannot be read: {error!r}")
            with self._lock:
                self._finish(request, slot, failure, retries)

    def _start(self) -> tuple[Request, int] | None:
        """Take the next request and give it a slot; None when nothing can begin."""
        if self._closed or not self._may_start():
            return None
        victim = None if self._free else self._victim()
        if not self._free and victim is None:
            return None
        request = self._queue.take(speculation=self._guesses_reading < self._max_guesses)
        if request is None:
            return None
        if victim is not None:
            self._evict(victim)
        slot = self._free.pop()
        self._entries[request.key] = _Entry(slot, guess=not request.demand)
        stats = self.stats
        stats.peak_bytes = max(stats.peak_bytes, (self.pool.count - len(self._free)) * self.pool.slot_bytes)
        if not request.demand:
            self._guesses.add(request.key)
            stats.speculative_loads += 1
            self._guesses_reading += 1
        if not self._reading:
            self._read_mark = time.perf_counter()
        self._reading += 1
        return request, slot

    def _finish(self, request: Request, slot: int, failure: StoreError | None, retries: int) -> None:
        now = time.perf_counter()
        stats, entry = self.stats, self._entries[request.key]
        stats.read_seconds += now - self._read_mark
        self._read_mark = now
        self._reading -= 1
        self._guesses_reading -= not request.demand
        stats.loads += 1
        stats.retried_reads += retries
        if failure is not None:
            del self._entries[request.key]
            self._guesses.discard(request.key)
            self._free.append(slot)
            # A guess that failed is dropped: if the expert is wanted, its demand tries again and reports.
            if request.key in self._pins:
                self._failed[request.key] = failure
        else:
            entry.ready = True
            stats.demand_bytes += self.store.layout.stored_bytes if request.demand else 0
            self._policy.insert(request.key)
            if entry.stale and entry.guess:
                self._policy.demote(request.key)
            if not self.keep and not entry.guess and request.key not in self._pins:
                self._evict(request.key)
        self._offer_slots()
        self._done.notify_all()

    def _offer_slots(self) -> None:
        """Wake the lanes if requests wait, maybe for a slot."""
        if self._may_start():
            self._work.notify_all()

    def _may_start(self) -> bool:
        """Whether a request waits that a lane may take, if there is a slot for it."""
        return bool(len(self._queue) if self._guesses_reading < self._max_guesses else self._queue.demands)

    def _victim(self) -> ExpertKey | None:
        return self._policy.victim(self._pins)

    def _evict(self, key: ExpertKey) -> None:
        entry = self._entries.pop(key)
        self._policy.remove(key)
        self._free.append(entry.slot)
        if entry.guess:
            self._guesses.discard(key)
            self.stats.wasted_bytes += self.store.layout.stored_bytes
