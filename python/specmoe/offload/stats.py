"""What a run counts."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass
class TransferStats:
    """Counts of one cache, in requests, bytes and seconds; all only grow, except `peak_bytes`.

    Args:
        requests: experts that layers asked for, once per layer call.
        hits: of those, how many were there and waited for nothing.
        misses: how many had to be loaded on demand.
        late: how many were on their way, loaded by speculation, but not there yet.
        prefetched: of the hits, how many speculation had loaded for this first use.
        demand_bytes: bytes read because a layer waited for them.
        useful_bytes: bytes read by speculation that were used, in time or late.
        late_bytes: the part of `useful_bytes` that came late.
        wasted_bytes: bytes read by speculation and evicted, or left over, without a use.
        speculative_loads: loads that speculation began.
        cancelled: requests of speculation that were dropped while still queued.
        retried_reads: reads that failed and were repeated.
        stall_seconds: time that layers spent waiting for experts.
        predict_seconds: time spent in the predictor and in choosing what to load.
        read_seconds: time during which at least one read was under way.
        loads: reads that were finished.
        peak_bytes: most memory of the slots in use at once.
    """

    requests: int = 0
    hits: int = 0
    misses: int = 0
    late: int = 0
    prefetched: int = 0
    demand_bytes: int = 0
    useful_bytes: int = 0
    late_bytes: int = 0
    wasted_bytes: int = 0
    speculative_loads: int = 0
    cancelled: int = 0
    retried_reads: int = 0
    stall_seconds: float = 0.0
    predict_seconds: float = 0.0
    read_seconds: float = 0.0
    loads: int = 0
    peak_bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of requests that waited for nothing."""
        return self.hits / self.requests if self.requests else 0.0

    @property
    def recall(self) -> float | None:
        """Of the experts that were wanted and not resident, the share that speculation had begun to load."""
        covered = self.prefetched + self.late
        wanted = covered + self.misses
        return covered / wanted if wanted else None

    @property
    def precision(self) -> float | None:
        """Of the experts that speculation loaded, the share that was used."""
        done = self.useful_bytes + self.wasted_bytes
        return self.useful_bytes / done if done else None

    def copy(self) -> TransferStats:
        return replace(self)

    def since(self, earlier: TransferStats) -> TransferStats:
        """Return what was counted after `earlier`; the peak is the present one."""
        values = {f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)}
        return TransferStats(**{**values, "peak_bytes": self.peak_bytes})
