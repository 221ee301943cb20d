"""What two busy processes on the same cores cost each library: the expert MLP beside them, and alone.

Threads that spin while they wait lose whole time slices to a neighbour, threads that sleep lose their share.
Leave OMP_WAIT_POLICY unset here: that is what a user has, and PASSIVE makes torch's threads sleep.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest

from moe_kernels import fused_experts

COUNTS = (16,), (32,)
SPIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


@contextlib.contextmanager
def busy_neighbours(count: int):
    """Run `count` processes that never rest, each pinned to one of the cores that this one may use."""
    cores = sorted(os.sched_getaffinity(0))
    processes = [subprocess.Popen([sys.executable, "-c", SPIN, str(cores[i % len(cores)])]) for i in range(count)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no pinning of processes here")
@pytest.mark.parametrize("neighbours", [0, 2], ids=["alone", "beside"])
def test_busy_neighbours(compare, model, T, neighbours):
    tokens = model.tokens(T)

    def ours(copy, given):
        return fused_experts(given.x, given.indices, given.routing, *model.weights[copy])

    with busy_neighbours(neighbours):
        record = compare(
            {"ours": model.arm("ours", lambda: ours, tokens), **model.transformers(tokens), **model.peers(tokens)},
            nbytes=model.expert_bytes * len(tokens[0].indices.unique()),
            flops=model.operations(T),
            dtype=model.dtype,
            op="beside two busy processes" if neighbours else "alone",
            shape=model.name,
            sizes=model.shape,
        )
    if record is None:
        return
    if not neighbours:
        model.kept[f"alone T{T}"] = record.seconds
    elif alone := model.kept.get(f"alone T{T}"):
        slower = (f"{name} {seconds / alone[name]:.1f}x" for name, seconds in record.seconds.items())
        record.note = f"slower than alone: {', '.join(slower)}"
