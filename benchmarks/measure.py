"""The machine's own limits, measured in the process that runs the benchmarks, and the timing of several arms in turn.

A floor is max(bytes / read rate, operations / product rate): what the hardware needs at least. The read rate is taken
anew for each case, because on a shared machine it changes from minute to minute.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch

from moe_kernels.native import core, native, view

Call = Callable[[int], object]

# Kinds of product that compute each format with 32-bit sums; float32's serve all of them.
FLOAT_KINDS = ("avx512", "avx2", "neon", "scalar")
KINDS = {
    "float32": FLOAT_KINDS,
    "float16": FLOAT_KINDS,
    "bfloat16": ("amx_bf16", "avx512_bf16", *FLOAT_KINDS),
    "int8": ("amx_int8", "avx512_vnni", "amx_bf16", "avx512_bf16", *FLOAT_KINDS),
}


class Rate(NamedTuple):
    """A rate per second and how it was found."""

    value: float
    how: str


# A loop below this part of the best is not tried again: formats differ by two or more, disturbances by less.
BEHIND = 0.6
_best: dict[tuple[str, int], float] = {}


def product_rate(kind: str, threads: int) -> Rate:
    """Operations per second of the fastest register loop for a format of `KINDS`; of torch.mm where none is built.

    Each call measures the fast ones anew and counts the best of all: the rate is the processor's, disturbances are not.
    """
    if native()[0] is None:
        n = 2048
        a = torch.randn(n, n)
        return Rate(2 * n**3 / min(_seconds(lambda: a @ a) for _ in range(5)), "torch.mm float32")
    usable = [name for name in KINDS[kind] if name in core().product_kinds()]
    known = {name: _best[name, threads] for name in usable if (name, threads) in _best}
    for name in usable:
        # A loop takes 0.1 s; trying all of them for every case was half of the time of `--small`.
        if name not in known or known[name] > BEHIND * max(known.values()):
            _best[name, threads] = max(known.get(name, 0.0), core().product_rate(name, threads))
    fastest = max(_best[name, threads] for name in usable)
    # Of equally fast ones the first.
    name = next(name for name in usable if _best[name, threads] >= 0.97 * fastest)
    return Rate(_best[name, threads], name)


@cache
def _memory() -> tuple[torch.Tensor, ...]:
    """Slices of 1 GiB, more than the last-level caches of current servers hold."""
    return torch.ones(2**28).chunk(8)


def read_rate(turn: int) -> float:
    """Bytes per second of reading 128 MiB of memory that no cache holds; `turn` chooses which."""
    part = _memory()[turn % len(_memory())]
    if native()[0] is None:
        return part.numel() * 4 / _seconds(part.sum)
    return core().read_rate(view(part), torch.get_num_threads())


# What times the peers: pytest-benchmark's timer for ours (--benchmark-timer). On a machine that others use too, the CPU
# time of one thread is the process's own: OMP_NUM_THREADS=1 and --benchmark-timer=time.process_time.
timer: Callable[[], float] = time.perf_counter


def _seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    call()
    return clock() - begin


# libgomp's threads spin for some milliseconds after their work; the next arm must not share the cores with them.
# The wait is busy: after a sleep everything begins 0.2 ms later, at a lower clock and with cold caches.
PAUSE = 0.005
# Calls that are this short are repeated more often.
SHORT, MORE = 0.02, 4
# How often memory is read before the rounds and after them.
READS = 3
# Between the numbers of two arms, so that one does not ask for what the other has just brought into a large cache.
APART = 37
# Memory that the copies of the data fill together: more than the caches hold. An option of the run sets it.
rotated_bytes = 2.0 * 2**30


def _wait() -> None:
    end = time.perf_counter() + PAUSE
    while time.perf_counter() < end:
        pass
    # Before ours pytest-benchmark runs code of its own, which wakes the interpreter up: without these calls the same
    # 0.08 ms took 3 to 10 % longer as a peer.
    for _ in range(20):
        _seconds(int)


class Measured(NamedTuple):
    """Median seconds and number of rounds of each arm, and the best read rate just before and after."""

    seconds: dict[str, float]
    rounds: dict[str, int]
    read: float


def interleave(
    benchmark: Any, arms: Mapping[str, Call], first: Mapping[str, float], rounds: int, limit: float
) -> Measured:
    """Time the arms in turn, round by round.

    Args:
        benchmark: pytest-benchmark's fixture. It times the first arm, ours; the peers run in the setup of its rounds.
        arms: each is called with a number that grows by one from round to round, and chooses its data by it.
        first: seconds of each arm's warm-up. An arm whose calls take longer than `limit` seconds together gets fewer
            rounds; a peer whose warm-up already does keeps that as its only measurement, ours gets one round.
        rounds: for arms that are neither short nor long.
    """
    ours, *peers = arms
    times: dict[str, list[float]] = {name: [] for name in arms}
    wanted = {}
    for name, seconds in first.items():
        often = rounds * MORE if seconds < SHORT else rounds
        wanted[name] = min(often, max(2, int(limit / seconds))) if seconds < limit else 0
        if not wanted[name] and name != ours:
            times[name].append(seconds)
    wanted[ours] = max(1, wanted[ours])
    # Not between the rounds: reading so much takes even the interpreter out of the caches.
    read = max(map(read_rate, range(READS)))
    for name, call in arms.items():
        if first[name] < SHORT:
            call(0)

    def run_peers(number: int) -> None:
        for position, name in enumerate(peers, 1):
            if number < wanted[name]:
                turn = number + APART * position
                _wait()
                times[name].append(_seconds(lambda call=arms[name], turn=turn: call(turn), timer))

    numbers = itertools.count()

    def before_ours() -> tuple[tuple[int], dict[str, Any]]:
        number = next(numbers)
        run_peers(number)
        _wait()
        return (number,), {}

    benchmark.pedantic(arms[ours], setup=before_ours, rounds=wanted[ours])
    times[ours] = list(benchmark.stats.stats.data)
    for number in range(wanted[ours], max(wanted.values())):
        run_peers(number)
    read = max(read, *map(read_rate, range(READS)))
    return Measured(
        {name: statistics.median(values) for name, values in times.items()},
        {name: len(values) for name, values in times.items()},
        read,
    )


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return ‖got − want‖ / ‖want‖, summed in parts: a layer's gradient in float64 would be gigabytes."""
    if got.shape != want.shape:
        raise ValueError(f"shapes differ: {tuple(got.shape)} and {tuple(want.shape)}")
    apart = size = 0.0
    for theirs, ours in zip(got.reshape(-1).split(2**24), want.reshape(-1).split(2**24), strict=True):
        ours = ours.float()
        apart += float((theirs.float() - ours).square().sum(dtype=torch.float64))
        size += float(ours.square().sum(dtype=torch.float64))
    return math.sqrt(apart / size) if size else math.sqrt(apart)


def copies_for(nbytes: float) -> int:
    """Return how many copies of `nbytes` to rotate through so that no cache serves them."""
    return max(2, math.ceil(rotated_bytes / max(nbytes, 1)))
