"""The comparison of arms: what the counting clock counts, and that reports have what they promise."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specmoe.offload import build_checkpoint_store, offload
from specmoe.offload.bench import eviction_shares, measured_rows, run_checkpoint_arms, sweep
from specmoe.offload.bench.arms import MODEL_ARMS
from specmoe.offload.bench.emulate import Chances, emulate, oracle_chances
from specmoe.offload.bench.policies import Belady, Pinned, most_frequent
from specmoe.offload.bench.report import interval
from specmoe.offload.store import ExpertKey
from specmoe.offload.tiers import LRU, Guided
from specmoe.speculation import RouteTrace

from .tiny_checkpoints import write_checkpoint

E = 8


def random_routes(tokens: int, layers: int = 3, k: int = 2, seed: int = 0) -> np.ndarray:
    """Return routes that like some experts and the previous token's."""
    chance = np.random.default_rng(seed)
    routes = np.empty((tokens, layers, k), dtype=np.int64)
    liking = chance.dirichlet(np.full(E, 0.7), size=layers)
    for token, layer in itertools.product(range(tokens), range(layers)):
        if token and chance.random() < 0.4:
            routes[token, layer] = routes[token - 1, layer]
        else:
            routes[token, layer] = chance.choice(E, k, replace=False, p=liking[layer] * 0.9 + 0.1 / E)
    return routes


def test_on_demand_costs_compute_and_every_miss() -> None:
    routes = random_routes(30)
    result = emulate(routes, E, 9, 0.5, LRU())
    assert result.requests == 30 * 3 * 2 == result.hits + result.misses and result.late == 0
    assert result.seconds == pytest.approx(30 * 3 + 0.5 * result.misses)
    nothing = emulate(routes, E, 9, 0.5, LRU(), keep=False)
    assert nothing.misses == nothing.requests
    everything = emulate(routes, E, 3 * E, 0.5, LRU(), warm=25)
    assert everything.misses <= 3 and everything.tokens == 5


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 4.0])
def test_the_oracle_hides_what_can_be_hidden(ratio: float) -> None:
    routes = random_routes(60)
    demand = emulate(routes, E, 9, ratio, LRU(), warm=5)
    oracle = emulate(routes, E, 9, ratio, LRU(), chances=oracle_chances(routes, E), predict=0.0, warm=5)
    assert 55 * 3 <= oracle.seconds <= demand.seconds
    assert demand.seconds / oracle.seconds <= 2.0
    if ratio == 0.1:
        assert oracle.seconds == pytest.approx(55 * 3, rel=0.01)


def test_belady_misses_least() -> None:
    for seed in range(3):
        routes = random_routes(80, seed=seed)
        belady = Belady(routes, E)
        best = emulate(routes, E, 9, 1.0, belady, next_use=belady.seek)
        for policy in (LRU(), Guided(), Pinned(most_frequent(routes, E, 4))):
            assert best.misses <= emulate(routes, E, 9, 1.0, policy).misses


def test_belady_is_the_best_of_all_on_a_small_case() -> None:
    routes = random_routes(7, layers=1, k=1, seed=4)
    belady = Belady(routes, E)
    got = emulate(routes, E, 2, 1.0, belady, next_use=belady.seek).misses

    def fewest(token: int, held: frozenset[int]) -> int:
        if token == len(routes):
            return 0
        wanted = int(routes[token, 0, 0])
        if wanted in held:
            return fewest(token + 1, held)
        options = [held] if len(held) < 2 else [held - {gone} for gone in held]
        return 1 + min(fewest(token + 1, option | {wanted}) for option in options)

    assert got == fewest(0, frozenset())


def test_wrong_guesses_never_cost_more_than_a_percent_with_the_gate() -> None:
    routes = random_routes(300)
    chance = np.random.default_rng(1)
    wrong = Chances(chance.random((300, 3, E)).astype(np.float32) * 0.6, np.full((300, 3, E), np.nan, dtype=np.float32))
    for ratio in (0.05, 0.5, 1.0, 4.0):
        base = emulate(routes, E, 9, ratio, LRU(), warm=100)
        gated = emulate(routes, E, 9, ratio, LRU(), chances=wrong, predict=0.001, warm=100)
        assert gated.seconds <= 1.02 * base.seconds


def test_a_run_is_repeatable() -> None:
    routes = random_routes(40)
    runs = [emulate(routes, E, 9, 0.5, Guided(), chances=oracle_chances(routes, E)) for _ in range(2)]
    assert runs[0] == runs[1]


def test_the_sweep_has_every_arm_and_its_bounds() -> None:
    known = RouteTrace(random_routes(200, seed=1), np.array([0, 100, 200]), E)
    rows = sweep(known, random_routes(60), slots_per_layer=(3,), ratios=(0.5, 1.0), warm=10)
    by_arm = {(row["ratio"], row["arm"]): row for row in rows}
    assert len(rows) == 24
    for ratio in (0.5, 1.0):
        base = by_arm[ratio, "LRU on demand"]
        assert base["speedup"] == 1.0
        assert by_arm[ratio, "all resident"]["time"] == 3.0
        bound = by_arm[ratio, "bound"]["time"]
        assert all(
            bound <= row["time"] + 1e-9 for (r, arm), row in by_arm.items() if r == ratio and arm != "all resident"
        )
        assert by_arm[ratio, "oracle, one layer ahead"]["oracle_gain"] in (None, pytest.approx(1.0))
    share = eviction_shares(rows)[3]
    assert share["lru"] <= share["belady"]


def test_the_most_frequent_experts_stay() -> None:
    assert most_frequent(np.array([[[1, 2], [0, 1]], [[1, 3], [0, 2]]]), 4, 2) == [ExpertKey(0, 1), ExpertKey(1, 0)]
    policy = Pinned([ExpertKey(0, 1)])
    for e in range(4):
        policy.insert(ExpertKey(0, e))
    assert [key.expert for key in policy.order()] == [0, 2, 3]


def test_intervals_hold_the_median() -> None:
    middle, low, high = interval([1.0, 1.1, 0.9, 1.2, 1.05])
    assert low <= middle == 1.05 <= high
    assert interval([2.0]) == (2.0, 2.0, 2.0)


def test_a_checkpoint_runs_with_every_arm(tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    build_checkpoint_store(tmp_path / "model", tmp_path / "store").close()
    arms = [arm for arm in MODEL_ARMS if not arm.resident]
    prompts = [torch.randint(3, 90, (1, 6), generator=torch.Generator().manual_seed(n)) for n in range(2)]
    with offload(tmp_path / "model", tmp_path / "store", memory="400KiB", direct=True) as engine:
        results = run_checkpoint_arms(engine, prompts, 4, arms=arms)
        rows: list[dict[str, Any]] = measured_rows(results)
    json.dumps(rows)
    assert [row["arm"] for row in rows] == [arm.name for arm in arms]
    assert all(row["outputs_equal"] and row["peak_bytes"] <= 400 * 1024 for row in rows)
    assert all(row["rounds"] == (1 if row["arm"] == "no cache" else 2) for row in rows)
