"""Compiles what is compiled at the first call, in several processes, so that the benchmarks need not wait for it.

Triton compiles a kernel for each tile and each H and I, one after the other; a library that tries 32 tiles takes
minutes for a shape. It keeps them in a folder on disk, and finds them there for any number of experts. So each arm runs
once, where there are many tokens with a sixteenth of them and of the experts: as many rows an expert, little memory.

    python benchmarks/gpu/warm.py [--processes 8]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from peers import Tokens, Unavailable  # noqa: E402

from gpu import arms, plan, shapes  # noqa: E402
from gpu.results import Row  # noqa: E402
from moe_kernels import BackendUnavailable  # noqa: E402

SHRUNK = 16


def shrunk(shape: shapes.Shape, T: int) -> tuple[shapes.Shape, int]:
    """Return a smaller case with as many rows an expert; few tokens are left as they are."""
    if T <= 64:
        return shape, T
    E = max(shape.K, shape.E // SHRUNK)
    return shape._replace(E=E), max(1, T * E // shape.E)


def warm(row: Row, device_name: str, small: bool) -> str:
    """Run an arm once; return what came of it."""
    begin, device = time.perf_counter(), torch.device(device_name)
    shape, T = shrunk((shapes.SMALL if small else shapes.MODELS)[row.case], row.T)
    training = row.group == "forward+backward"
    gate_up, down = (weight.requires_grad_(training) for weight in shapes.weights(shape, device))
    tokens = shapes.tokens(shape, T, device)
    x, routing = tokens.x.requires_grad_(training), tokens.routing.requires_grad_(training)
    try:
        arm = arms.arm(row.arm, gate_up, down)
        with torch.set_grad_enabled(training):
            given = Tokens(x, tokens.indices, tokens.wide, routing, routing.to(x.dtype))
            out = arm.forward(given)
            if training and arm.trains:
                torch.autograd.grad(out, (x, routing, arm.gate_up, arm.down), torch.randn_like(out))
        if device.type == "cuda":
            torch.cuda.synchronize()
    except (Unavailable, BackendUnavailable, ImportError) as error:
        return f"not there: {str(error)[:80]}"
    except Exception as error:
        # The benchmark itself will say what is wrong.
        return f"failed: {type(error).__name__}: {str(error)[:200]}"
    return f"{time.perf_counter() - begin:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--processes", type=int, default=max(1, min(8, (os.cpu_count() or 2) // 2)))
    options = parser.parse_args()
    groups = ("forward", "forward+backward", "decode")
    # torch's own products have nothing to compile.
    rows = [
        row
        for row in plan.rows(torch.device(options.device), options.small)
        if row.group in groups and row.arm != "torch grouped_mm"
    ]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.processes, mp_context=spawn) as pool:
        doing = {pool.submit(warm, row, options.device, options.small): row for row in rows}
        for done in concurrent.futures.as_completed(doing):
            name = " ".join(str(value) for value in dataclasses.astuple(doing[done])[:4])
            try:
                print(f"{name}: {done.result()}", flush=True)
            except concurrent.futures.BrokenExecutor as error:
                # A kernel that takes its process with it; the benchmark meets it in a worker of its own.
                print(f"{name}: {error}", flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
