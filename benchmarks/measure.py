"""The machine's own limits, measured in the process that runs the benchmarks.

A floor is max(bytes / read bandwidth, FLOPs / matrix rate): what the hardware needs at least.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from functools import cache

import torch

# More than the last-level caches of current servers hold.
ROTATED_BYTES = 2 * 2**30


def median_seconds(call: Callable[[], object], rounds: int = 7) -> float:
    """Return the median time of `call` in seconds, after one call that is not counted."""
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@cache
def read_bandwidth() -> float:
    """Bytes per second of summing a float32 tensor of 1 GiB."""
    data = torch.ones(2**28)
    return data.numel() * 4 / median_seconds(data.sum, 5)


@cache
def matrix_rate(dtype: torch.dtype) -> float:
    """FLOPs per second of torch.mm on 2048 x 2048 matrices, the best of the dtype itself and float32.

    A processor without 16-bit products computes them in float32.
    """
    n = 2048
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    own = 2 * n**3 / median_seconds(lambda: a @ b)
    return own if dtype == torch.float32 else max(own, matrix_rate(torch.float32))


def floor_seconds(nbytes: float, flops: float, dtype: torch.dtype) -> float:
    """Return the least time that moving `nbytes` and computing `flops` takes here, in seconds."""
    return max(nbytes / read_bandwidth(), flops / matrix_rate(dtype) if flops else 0.0)


def copies_for(nbytes: int) -> int:
    """Return how many copies of `nbytes` to rotate through so that no cache serves them."""
    return max(2, math.ceil(ROTATED_BYTES / max(nbytes, 1)))
