"""The arms of `specmoe offload bench` on recorded routes: real reads past the page cache, real expert kernels.

    MOE_DATA_DIR=... pytest benchmarks/bench_prefetch.py

A round is the same tokens for every arm, from an empty cache; `extra_info` has what its tokens waited for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.offload.bench import REPLAY_ARMS, measured_rows, replay_store, run_replay_arms, shape_for
from specmoe.offload.bench.arms import Arm
from specmoe.offload.budget import parse_bytes
from specmoe.speculation import load_routes

TRACE = Path(os.environ.get("MOE_DATA_DIR", "")) / "gptoss20b_routes.npz"
SIZE, SHARE, TOKENS, ROUNDS = "1GiB", 0.25, 24, 3


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, ...]]:
    if not TRACE.is_file():
        pytest.skip("MOE_DATA_DIR has no gptoss20b_routes.npz")
    routes = load_routes(TRACE)
    plan = shape_for(routes, parse_bytes(SIZE))
    known, held = routes.layers(plan.first_layer, plan.layers).split(0.25)
    store, _ = replay_store(plan, tmp_path_factory.mktemp("store"))
    with store:
        slots = max(plan.top_k, int(SHARE * len(store.layout.blobs)))
        parts = [np.roll(held.experts, -int(held.starts[n]), axis=0)[:TOKENS] for n in range(ROUNDS)]
        yield plan, store, slots, known, parts


@pytest.mark.parametrize("arm", REPLAY_ARMS, ids=lambda arm: arm.name.replace(" ", "-"))
def test_prefetch(benchmark: Any, replay: tuple[Any, ...], arm: Arm) -> None:
    plan, store, slots, known, parts = replay
    results = []

    def run(number: int) -> None:
        results.extend(run_replay_arms(plan, store, slots, known, [parts[number]], arms=[arm]))

    numbers = iter(range(ROUNDS))
    benchmark.pedantic(run, setup=lambda: ((next(numbers),), {}), rounds=ROUNDS, iterations=1)
    row = measured_rows(results[-1:])[0]
    benchmark.extra_info.update({name: row[name] for name in row if name not in ("rounds", "speedup_over_lru")})
