"""Slots on a device above those in host memory: filled by a copy stream beside the one that computes.

Not yet measured on a GPU: what runs without one is the bookkeeping, with slots on the CPU and no streams.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..store import ExpertKey
from .host import HostTier
from .slots import SlotPool

# Weight of the newest measurement in the running costs.
NEWEST = 0.1


class DeviceTier:
    """A cache of experts on a device, least recently used first.

    A layer asks what is `absent`, gets that into host slots, calls `bring`, launches its computation, calls `used`, and
    then `copied` before it lets go of the host slots. A slot is overwritten only after the computations that read it.

    Args:
        host: the tier below; its slots are pinned.
        slots: how many experts fit.
        device: such as "cuda".
        on_host: whether a missed expert may be computed on the host, where its measured cost there is lower.
    """

    def __init__(self, host: HostTier, slots: int, device: torch.device | str, *, on_host: bool = False) -> None:
        self.host = host
        self.device = torch.device(device)
        self.on_host = on_host
        self.pool = SlotPool(host.store.layout, slots, self.device)
        self.hits = self.copies = self.host_computed = 0
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None
        if cuda:
            host.pool.pin()
        self._slot_of: OrderedDict[ExpertKey, int] = OrderedDict()
        self._free = list(range(slots))[::-1]
        self._read_by: dict[int, torch.cuda.Event] = {}
        self._copy_done: torch.cuda.Event | None = None
        self._timed: tuple[torch.cuda.Event, torch.cuda.Event, int] | None = None
        # Seconds to copy one expert, and to compute one row on the host; None until measured.
        self.copy_seconds: float | None = None
        self.row_seconds: float | None = None

    @property
    def slots(self) -> int:
        return self.pool.count

    def absent(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Return those of a layer's experts that are not on the device."""
        return [e for e in experts if ExpertKey(layer, e) not in self._slot_of]

    def bring(self, layer: int, experts: Sequence[int], host_slots: dict[int, int]) -> list[int]:
        """Return the slots of experts; those that were absent are copied from their host slots.

        The computing stream is made to wait for the copies; the host is not.
        """
        keys = [ExpertKey(layer, e) for e in experts]
        if len(keys) > self.slots:
            raise ValueError(f"bring: experts: expected at most {self.slots}, got {len(keys)}")
        wanted, missing = set(keys), []
        for key in keys:
            if key in self._slot_of:
                self.hits += 1
                self._slot_of.move_to_end(key)
            else:
                missing.append(key)
        try:
            for key in missing:
                if not self._free:
                    victim = next(k for k in self._slot_of if k not in wanted)
                    self._free.append(self._slot_of.pop(victim))
                self._slot_of[key] = self._free.pop()
            if missing:
                self._copy([(host_slots[key.expert], self._slot_of[key]) for key in missing])
        except BaseException:
            # Interrupted: what was not copied is not there.
            for key in missing:
                self._slot_of.pop(key, None)
            self._free = sorted(set(range(self.slots)) - set(self._slot_of.values()), reverse=True)
            raise
        return [self._slot_of[key] for key in keys]

    def _copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.copies += len(pairs)
        if self._stream is None:
            for source, target in pairs:
                self.pool.raw[target].copy_(self.host.pool.raw[source])
                self.pool.settle(target)
            return
        self._learn_copies()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self._stream):
            for _, target in pairs:
                if target in self._read_by:
                    self._stream.wait_event(self._read_by.pop(target))
            begin.record(self._stream)
            for source, target in pairs:
                self.pool.raw[target].copy_(self.host.pool.raw[source], non_blocking=True)
                self.pool.settle(target)
            end.record(self._stream)
        torch.cuda.current_stream(self.device).wait_event(end)
        self._copy_done = end
        self._timed = (begin, end, len(pairs))

    def _learn_copies(self) -> None:
        if self._timed is not None and self._timed[1].query():
            begin, end, count = self._timed
            self.copy_seconds = _mean(self.copy_seconds, begin.elapsed_time(end) / 1e3 / count)
            self._timed = None

    def used(self, slots: Sequence[int]) -> None:
        """Note that what was launched until now on the computing stream reads these slots."""
        if self._stream is None:
            return
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        for slot in slots:
            self._read_by[slot] = event

    def copied(self) -> None:
        """Wait until the host slots that `bring` copied from may be overwritten."""
        if self._copy_done is not None:
            self._copy_done.synchronize()
            self._copy_done = None

    def cheaper_on_host(self, layer: int, missing: Sequence[int], experts: np.ndarray) -> list[int]:
        """Return those of the missing experts that are computed faster on the host than copied.

        Until both costs are known, one expert at a time is computed there, to learn what that costs.

        Args:
            layer: the layer.
            missing: its experts that are not on the device.
            experts: (T, K), the routing: an expert's rows are what the host would compute.
        """
        if not self.on_host or not missing:
            return []
        if self.row_seconds is None:
            return [missing[0]]
        if self.copy_seconds is None:
            return []
        return [e for e in missing if int((experts == e).sum()) * self.row_seconds < self.copy_seconds]

    @contextmanager
    def computing_on_host(self, rows: int) -> Iterator[None]:
        """Measure what computing so many rows on the host takes."""
        begin = time.perf_counter()
        yield
        self.host_computed += 1
        self.row_seconds = _mean(self.row_seconds, (time.perf_counter() - begin) / max(1, rows))

    def reset(self) -> None:
        """Forget what the slots hold."""
        self.copied()
        self._free += self._slot_of.values()
        self._slot_of.clear()
        self.hits = self.copies = self.host_computed = 0

    def close(self) -> None:
        """Wait for copies and let go of the host's pages; the tier below is closed before."""
        if self._stream is not None:
            self._stream.synchronize()
        self.host.pool.unpin()


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + NEWEST * (value - mean)
