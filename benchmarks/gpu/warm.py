"""Compiles what is compiled at the first call, in several processes, so that the benchmarks need not wait for it.

Triton compiles a kernel for each tile, each H and I and each number of experts, and keeps it in a folder on disk. So
each row is gone through once as the benchmark does it, without the clock, and with fewer tokens where there are many:
still so many rows an expert that the tiles are the same.

    python benchmarks/gpu/warm.py [--processes 14]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import gc
import multiprocessing
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from peers import Unavailable  # noqa: E402

from gpu import decode, plan  # noqa: E402
from gpu.ceilings import Ceilings  # noqa: E402
from gpu.context import Context  # noqa: E402
from gpu.results import Row  # noqa: E402
from gpu.timing import Skip, synchronize, usable  # noqa: E402
from moe_kernels import BackendUnavailable  # noqa: E402

# More than 64 rows an expert in every model, from where on a product's tile is the largest.
TOKENS = 4096
# Arms with nothing to compile, and groups whose kernels are those of others: of forward+backward, and of decode.
NOT_COMPILED, ELSEWHERE = ("torch grouped_mm", "cuda"), ("memory", "offload")


def kernels_of(rows: list[Row]) -> list[Row]:
    """Return the rows that compile what the given ones need, each once."""
    few = [
        dataclasses.replace(row, T=min(row.T, TOKENS))
        for row in rows
        if row.arm.removesuffix(" nf4").removesuffix(" int8") not in NOT_COMPILED and row.group not in ELSEWHERE
    ]
    return list({(row.group, row.case, row.T, row.arm): row for row in few}.values())


def warm(row: Row, device_name: str, small: bool) -> str:
    """Run a row once; return what came of it."""
    begin, device = time.perf_counter(), torch.device(device_name)
    context = Context(device, Ceilings(1.0, 1.0, 1.0), small, compiling=True)
    try:
        plan.GROUPS[row.group](context, row)
        synchronize(device)
        said = f"{time.perf_counter() - begin:.1f} s"
    except (Unavailable, BackendUnavailable, ImportError, Skip) as error:
        said = f"not there: {str(error)[:80]}"
    except Exception as error:
        # The benchmark itself will say what is wrong.
        said = f"failed: {type(error).__name__}: {str(error)[:200]}"
        if not usable(device):
            os._exit(1)
    decode.forget()
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return said


def warm_all(rows: list[Row], processes: int, device: str, small: bool) -> list[Row]:
    """Run rows, and print what comes of each; return those left if a kernel takes its process with it."""
    spawn, left = multiprocessing.get_context("spawn"), []
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        doing = {pool.submit(warm, row, device, small): row for row in rows}
        for done in concurrent.futures.as_completed(doing):
            row = doing[done]
            try:
                print(f"{row.group} {row.case} {row.T} {row.arm}: {done.result()}", flush=True)
            except concurrent.futures.BrokenExecutor:
                left.append(row)
    # Not those that were under way: one of them did it, and the benchmark meets it in a worker of its own.
    return [row for row in rows if row in left][processes:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--processes", type=int, default=max(1, min(14, (os.cpu_count() or 2) - 2)))
    options = parser.parse_args()
    rows = kernels_of(plan.rows(torch.device(options.device), options.small))
    while rows:
        rows = warm_all(rows, options.processes, options.device, options.small)
    return 0


if __name__ == "__main__":
    sys.exit(main())
