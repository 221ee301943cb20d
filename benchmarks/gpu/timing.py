"""Seconds of a call: by events of the GPU, by replays of a CUDA graph, and, for a CPU, by the clock on the wall."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]


class Skip(RuntimeError):
    """This case cannot be measured here; the message is the reason."""


class CaptureFailed(Skip):
    """A call cannot be recorded in a CUDA graph. What torch's allocator holds after that is not to be trusted."""


class Measured(NamedTuple):
    """Seconds of one call.

    Attributes:
        seconds: median.
        low, high: the 10th and the 90th percentile.
        repeats: how many were timed.
        first: the first call, which compiles what is compiled at run time.
    """

    seconds: float
    low: float
    high: float
    repeats: int
    first: float


# A CPU only tries the harness: this part of the time is enough.
ON_A_CPU = 0.05
# Cycles that a GPU waits before a timed call, about a millisecond: by then the host has queued its launches, and what
# is measured has no gaps in which the GPU waits for the host.
AHEAD = 2_000_000
# Written between two calls: more than the second-level caches of today's GPUs hold.
FLUSHED = 256 * 2**20
_flush: dict[torch.device, torch.Tensor] = {}


def _evict(device: torch.device) -> None:
    """Fill the cache with something else."""
    if device not in _flush:
        _flush[device] = torch.empty(FLUSHED // 4, dtype=torch.int32, device=device)
    _flush[device].zero_()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usable(device: torch.device) -> bool:
    """Whether the device still computes: after an illegal access nothing works in this process any more."""
    try:
        torch.zeros(1, device=device).add_(1)
        synchronize(device)
    except RuntimeError:
        return False
    return True


def _wall(call: Call, device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - begin


def _timed(call: Call, device: torch.device, repeats: int, cold: bool) -> list[float]:
    if device.type != "cuda":
        return [_wall(call, device) for _ in range(repeats)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        if cold:
            _evict(device)
            torch.cuda._sleep(AHEAD)
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize(device)
    return [begin.elapsed_time(end) / 1e3 for begin, end in events]


def measure(call: Call, device: torch.device, limit: float = 0.6, cold: bool = True, at_least: int = 5) -> Measured:
    """Time a call that has nothing to do with the ones before it.

    Args:
        limit: seconds of all repetitions together, of which there are `at_least` to 50.
        cold: evict the GPU's cache before each.
    """
    if device.type != "cuda":
        limit *= ON_A_CPU
    first = _wall(call, device)
    once = max(1e-6, min(_wall(call, device) for _ in range(2)))
    times = _timed(call, device, max(at_least, min(50, int(limit / once))), cold)
    return _summary(times, first)


def once(call: Call, device: torch.device) -> Measured:
    """Run a call a single time."""
    seconds = _wall(call, device)
    return _summary([seconds], seconds)


def _summary(times: list[float], first: float) -> Measured:
    times = sorted(times)
    tenth = (len(times) - 1) // 10
    return Measured(statistics.median(times), times[tenth], times[-1 - tenth], len(times), first)


def measure_graph(calls: Sequence[Call], device: torch.device, limit: float = 0.3) -> Measured:
    """Time calls recorded one after the other in a CUDA graph; seconds are those of one of them.

    Raises:
        Skip: no GPU.
        CaptureFailed: a call cannot be recorded.
    """
    if device.type != "cuda":
        raise Skip("CUDA graphs need a GPU")
    first = _wall(calls[0], device)
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        # Whatever a call allocates or loads once, it does now.
        for call in calls:
            call()
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = [call() for call in calls]
    except RuntimeError as error:
        raise CaptureFailed(f"cannot be recorded in a CUDA graph: {str(error).strip().splitlines()[0]}") from error
    once = max(1e-6, min(_wall(graph.replay, device) for _ in range(3)))
    times = _timed(graph.replay, device, max(10, min(200, int(limit / once))), cold=True)
    del kept
    return _summary([seconds / len(calls) for seconds in times], first)
