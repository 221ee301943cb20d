"""The host tier, with reads that the test holds back, fails or counts."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from specmoe.offload import ExpertKey, ExpertStore, HostTier, StoreError
from specmoe.offload.tiers import SlotPool

MakeLayers = Callable[..., dict[int, dict[str, torch.Tensor]]]

PATIENCE = 10.0


def key(expert: int, layer: int = 0) -> ExpertKey:
    return ExpertKey(layer, expert)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


class HeldReads:
    """Stands before a store's `read_into`: notes every read, and holds those of chosen experts until let go."""

    def __init__(self, store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[ExpertKey] = []
        self.held: dict[ExpertKey, threading.Event] = {}
        self.failing: set[ExpertKey] = set()
        self._real = store.read_into
        monkeypatch.setattr(store, "read_into", self._read)

    def _read(self, key: ExpertKey, target: memoryview) -> int:
        self.begun.append(key)
        if key in self.held:
            assert self.held[key].wait(PATIENCE)
        if key in self.failing:
            raise StoreError(f"{key} injected")
        return self._real(key, target)

    def hold(self, *keys: ExpertKey) -> None:
        for key in keys:
            self.held[key] = threading.Event()

    def let_go(self, *keys: ExpertKey) -> None:
        for key in keys:
            self.held[key].set()


@pytest.fixture
def reads(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldReads]:
    held = HeldReads(store, monkeypatch)
    yield held
    for event in held.held.values():
        event.set()


def use(tier: HostTier, *keys: ExpertKey) -> list[int]:
    """Demand, wait and release, as a layer does."""
    tier.demand(keys)
    try:
        return tier.wait(keys)
    finally:
        tier.release(keys)


def test_slots_hold_the_experts_that_were_demanded(make_layers: MakeLayers, store: ExpertStore) -> None:
    layers = make_layers()
    with HostTier(store, 5) as tier:
        for keys in ([key(0), key(3)], [key(1, 1), key(2, 1), key(5, 2)], [key(0), key(4)]):
            tier.demand(keys)
            slots = tier.wait(keys)
            assert len(set(slots)) == len(keys)
            for k, slot in zip(keys, slots, strict=True):
                for name, tensor in tier.pool.tensors.items():
                    assert torch.equal(tensor[slot], layers[k.layer][name][k.expert])
            tier.release(keys)


def test_memory_is_the_budget_and_reused(store: ExpertStore) -> None:
    with HostTier(store, 4) as tier:
        address = {name: t.data_ptr() for name, t in tier.pool.tensors.items()}
        for layer in range(3):
            use(tier, *(key(e, layer) for e in range(4)))
        assert tier.pool.nbytes == 4 * store.layout.blob_bytes == tier.stats.peak_bytes
        assert {name: t.data_ptr() for name, t in tier.pool.tensors.items()} == address


def test_hits_misses_and_lru_eviction(store: ExpertStore, reads: HeldReads) -> None:
    with HostTier(store, 3, lanes=1) as tier:
        for expert in (0, 1, 2, 0, 3, 0, 1):
            use(tier, key(expert))
        # 3 evicts 1, the least recently used; 1 then evicts 2.
        assert reads.begun == [key(0), key(1), key(2), key(3), key(1)]
        assert not tier.resident(key(2)) and tier.resident(key(0))
        assert (tier.stats.requests, tier.stats.hits, tier.stats.misses) == (7, 2, 5)
        assert tier.stats.demand_bytes == 5 * store.layout.blob_bytes


def test_held_experts_are_never_evicted(store: ExpertStore) -> None:
    with HostTier(store, 3, lanes=1) as tier:
        tier.demand([key(0)])
        tier.wait([key(0)])
        for expert in (1, 2, 3, 4, 5):
            use(tier, key(expert))
        assert tier.resident(key(0))
        tier.release([key(0)])
        for expert in (1, 2, 3):
            use(tier, key(expert))
        assert not tier.resident(key(0))


def test_a_slot_being_read_is_never_evicted(make_layers: MakeLayers, store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(5))
    with HostTier(store, 2, lanes=2) as tier:
        tier.speculate([(key(5), 0.9)])
        eventually(lambda: key(5) in reads.begun)
        for expert in (0, 1, 2, 3):
            use(tier, key(expert))
        reads.let_go(key(5))
        slot = use(tier, key(5))[0]
        assert torch.equal(tier.pool.tensors["down_proj"][slot], make_layers()[0]["down_proj"][5])
        assert reads.begun.count(key(5)) == 1


def test_demand_waits_for_a_slot_that_a_guess_is_filling(store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(4), key(5))
    with HostTier(store, 2, lanes=3) as tier:
        tier.speculate([(key(4), 0.9), (key(5), 0.8)])
        eventually(lambda: len(reads.begun) == 2)
        tier.demand([key(0), key(1)])
        reads.let_go(key(4), key(5))
        assert sorted(tier.wait([key(0), key(1)])) == [0, 1]
        tier.release([key(0), key(1)])
        assert tier.settle().wasted_bytes == 2 * store.layout.blob_bytes


def test_demand_overtakes_speculation(store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(5))
    with HostTier(store, 6, lanes=1) as tier:
        tier.speculate([(key(5), 0.9)])
        eventually(lambda: key(5) in reads.begun)
        tier.speculate([(key(4), 0.9)])
        tier.demand([key(0)])
        reads.let_go(key(5))
        tier.wait([key(0)])
        tier.release([key(0)])
        eventually(lambda: len(reads.begun) == 3)
        assert reads.begun == [key(5), key(0), key(4)]


def test_one_lane_is_kept_free_of_guesses(store: ExpertStore, reads: HeldReads) -> None:
    guesses = [key(e) for e in range(1, 6)]
    reads.hold(*guesses)
    with HostTier(store, 6, lanes=3) as tier:
        tier.speculate([(k, 0.5) for k in guesses])
        eventually(lambda: len(reads.begun) == 2)
        use(tier, key(0))
        assert len(reads.begun) == 3
        reads.let_go(*guesses)
        tier.settle()


def test_demand_for_a_guess_on_its_way_is_late_and_read_once(store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(2))
    with HostTier(store, 3) as tier:
        tier.speculate([(key(2), 0.9)])
        eventually(lambda: key(2) in reads.begun)
        tier.demand([key(2)])
        threading.Timer(0.02, lambda: reads.let_go(key(2))).start()
        tier.wait([key(2)])
        tier.release([key(2)])
        stats = tier.settle()
        assert (stats.late, stats.misses, stats.hits, stats.prefetched) == (1, 0, 0, 0)
        assert stats.useful_bytes == stats.late_bytes == store.layout.blob_bytes
        assert stats.stall_seconds > 0.005
        assert reads.begun == [key(2)]


def test_useful_and_wasted_guesses(store: ExpertStore, reads: HeldReads) -> None:
    blob = store.layout.blob_bytes
    with HostTier(store, 3) as tier:
        tier.speculate([(key(1), 0.9), (key(2), 0.8)])
        eventually(lambda: tier.stats.loads == 2)
        use(tier, key(1))
        use(tier, key(1))
        stats = tier.settle()
        assert (stats.hits, stats.prefetched, stats.useful_bytes, stats.wasted_bytes) == (2, 1, blob, blob)
        assert stats.recall == 1.0 and stats.precision == 0.5 and stats.hit_rate == 1.0
        # A guess is judged once.
        assert tier.settle().wasted_bytes == blob


def test_retire_cancels_waiting_guesses_and_evicts_wrong_ones_first(store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(3))
    with HostTier(store, 4, lanes=2) as tier:
        use(tier, key(0))
        tier.speculate([(key(1), 0.9)])
        eventually(lambda: tier.stats.loads == 2)
        tier.speculate([(key(3), 0.9)])
        eventually(lambda: key(3) in reads.begun)
        tier.speculate([(key(4), 0.5), (key(2, layer=1), 0.4)])
        tier.retire(0)
        assert tier.stats.cancelled == 1
        reads.let_go(key(3))
        eventually(lambda: tier.stats.loads == 4)
        # Full now: 0 (oldest), 1 and 3 (wrong guesses), and a guess for layer 1. The wrong ones go first.
        use(tier, key(5))
        use(tier, key(4))
        assert tier.resident(key(0)) and tier.resident(key(2, layer=1))
        assert not tier.resident(key(1)) and not tier.resident(key(3))


def test_speculation_skips_what_is_resident(store: ExpertStore, reads: HeldReads) -> None:
    with HostTier(store, 3) as tier:
        use(tier, key(1))
        tier.speculate([(key(1), 0.9)])
        assert tier.settle().speculative_loads == 0
        assert reads.begun == [key(1)]


def test_without_keeping_every_use_is_read(store: ExpertStore, reads: HeldReads) -> None:
    with HostTier(store, 3, keep=False) as tier:
        for _ in range(3):
            use(tier, key(1))
        assert len(reads.begun) == 3 and not tier.resident(key(1))


def test_failed_demand_is_raised_and_may_be_tried_again(
    make_layers: MakeLayers, store: ExpertStore, reads: HeldReads
) -> None:
    reads.failing.add(key(1))
    with HostTier(store, 3) as tier:
        with pytest.raises(StoreError, match=r"expert \(layer 0, expert 1\) injected"):
            use(tier, key(0), key(1))
        assert not tier.resident(key(1))
        reads.failing.clear()
        slot = use(tier, key(1))[0]
        assert torch.equal(tier.pool.tensors["down_proj"][slot], make_layers()[0]["down_proj"][1])


def test_failed_guess_is_dropped_and_demand_reports(store: ExpertStore, reads: HeldReads) -> None:
    reads.failing.add(key(1))
    with HostTier(store, 3) as tier:
        tier.speculate([(key(1), 0.9)])
        eventually(lambda: tier.stats.loads == 1)
        assert not tier.resident(key(1))
        with pytest.raises(StoreError, match="injected"):
            use(tier, key(1))


def test_an_unforeseen_error_in_a_lane_reaches_the_waiter(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(key: ExpertKey, target: memoryview) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(store, "read_into", broken)
    with HostTier(store, 3) as tier, pytest.raises(StoreError, match=r"expert 1\) cannot be read: .*a defect"):
        use(tier, key(1))


def test_retries_are_counted(store: ExpertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    real, attempts = store.file.read_into, []

    def fails_twice(offset: int, target: memoryview, *arrived: Any) -> None:
        attempts.append(offset)
        if len(attempts) <= 2:
            raise OSError("injected")
        real(offset, target, *arrived)

    monkeypatch.setattr(store.file, "read_into", fails_twice)
    with HostTier(store, 3) as tier:
        use(tier, key(1))
        assert tier.stats.retried_reads == 2


def test_reset_empties_the_cache(store: ExpertStore) -> None:
    with HostTier(store, 3) as tier:
        use(tier, key(1))
        tier.reset(keep=False)
        assert not tier.resident(key(1)) and tier.stats.requests == 0 and not tier.keep
        tier.demand([key(1)])
        with pytest.raises(RuntimeError, match="in use"):
            tier.reset()
        tier.release([key(1)])


def test_too_many_at_once_is_refused(store: ExpertStore) -> None:
    with HostTier(store, 2) as tier, pytest.raises(ValueError, match="expected at most 2 experts, got 3"):
        tier.demand([key(0), key(1), key(2)])


@pytest.mark.parametrize(("slots", "lanes"), [(0, 1), (1, 0)])
def test_no_slots_or_no_lanes_is_refused(store: ExpertStore, slots: int, lanes: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        HostTier(store, slots, lanes=lanes)


def test_close_during_reads_and_twice(store: ExpertStore, reads: HeldReads) -> None:
    reads.hold(key(1))
    tier = HostTier(store, 3)
    tier.speculate([(key(1), 0.9), (key(2), 0.5), (key(3), 0.4)])
    eventually(lambda: key(1) in reads.begun)
    reads.let_go(key(1))
    tier.close()
    tier.close()
    with pytest.raises(RuntimeError, match="closed"):
        tier.demand([key(0)])


def test_interrupted_wait_leaves_nothing_held(
    store: ExpertStore, reads: HeldReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostTier(store, 3) as tier:

        def interrupted(timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

        reads.hold(key(1))
        with monkeypatch.context() as patch:
            patch.setattr(tier, "_all_ready", lambda keys: interrupted())
            with pytest.raises(KeyboardInterrupt):
                use(tier, key(1))
        reads.let_go(key(1))
        tier.reset()
        use(tier, key(2), key(3), key(4))


def test_many_threads_worth_of_traffic_stays_correct(make_layers: MakeLayers, store: ExpertStore) -> None:
    layers = make_layers()
    generator = torch.Generator().manual_seed(0)
    with HostTier(store, 5, lanes=3) as tier:
        for step in range(200):
            layer = step % 3
            wanted = torch.randperm(6, generator=generator)[:2].tolist()
            guessed = torch.randperm(6, generator=generator)[:3].tolist()
            keys = [key(e, layer) for e in wanted]
            tier.demand(keys)
            tier.retire(layer)
            tier.speculate([(key(e, (layer + 1) % 3), 0.5) for e in guessed])
            for k, slot in zip(keys, tier.wait(keys), strict=True):
                assert torch.equal(tier.pool.tensors["gate_up_proj"][slot], layers[k.layer]["gate_up_proj"][k.expert])
            tier.release(keys)
        stats = tier.settle()
        assert stats.requests == stats.hits + stats.misses + stats.late == 400
        blob = store.layout.blob_bytes
        assert stats.useful_bytes + stats.wasted_bytes == stats.speculative_loads * blob
        assert stats.peak_bytes <= 5 * blob


@pytest.mark.parametrize("where", ["policy", "sleep"])
def test_an_interrupted_demand_holds_nothing(
    store: ExpertStore, reads: HeldReads, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with HostTier(store, 3) as tier:
        use(tier, key(1))
        with monkeypatch.context() as patch:
            if where == "policy":
                patch.setattr(tier._policy, "touch", interrupted)
            else:
                patch.setattr("specmoe.offload.tiers.host.time.sleep", interrupted)
            with pytest.raises(KeyboardInterrupt):
                tier.demand([key(0), key(1), key(2)])
        tier.reset()
        use(tier, key(2), key(3), key(4))


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_slots_give_their_memory_back(store: ExpertStore) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    pool = SlotPool(store.layout, (64 << 20) // store.layout.blob_bytes)
    pool.raw.fill_(1)
    before = resident()
    pool.give_back()
    assert resident() < before - (48 << 20)


def test_no_victim_is_sought_while_nothing_may_begin(
    store: ExpertStore, reads: HeldReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads.hold(key(3))
    with HostTier(store, 3, lanes=2) as tier:
        use(tier, key(0), key(1), key(2))
        tier.speculate([(key(3), 0.9), (key(4), 0.8)])
        eventually(lambda: key(3) in reads.begun)
        with tier._lock, monkeypatch.context() as patch:
            # One lane is kept for demands, and none waits.
            patch.setattr(tier, "_victim", None)
            assert tier._start() is None
        use(tier, key(5))
        reads.let_go(key(3))
        tier.settle()
