"""The engine's pipeline on the clock that counts: what prefetch can win, and that the gate keeps it from losing."""

from __future__ import annotations

import numpy as np
import pytest

from specmoe.offload.bench.emulate import Chances, Emulated, emulate
from specmoe.offload.tiers import LRU, Guided
from specmoe.speculation.counting import membership

L, E, K, N = 4, 16, 2, 250
SLOTS = 6 * L
RATIOS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def routes() -> np.ndarray:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(E, K, replace=False, p=np.arange(1, E + 1) / 136) for _ in range(N * L)])
    return ids.reshape(N, L, K)


def chances(routes: np.ndarray, kind: str) -> Chances:
    """Return guesses of the coming layer: all right, half of them, or none; and no advice on eviction."""
    truth = membership(routes, E).reshape(N * L, E)
    truth = np.concatenate([truth[1:], truth[:1]]).reshape(N, L, E)
    noise = np.random.default_rng(1).random(truth.shape)
    said = {"right": truth, "half": 0.7 * truth + 0.15 * (noise < 0.1), "wrong": 0.9 * (1 - truth) * (noise < 0.2)}[
        kind
    ]
    return Chances(said.astype(np.float32), np.full(truth.shape, np.nan, dtype=np.float32))


def run(routes: np.ndarray, ratio: float, kind: str | None = None, **options: float) -> Emulated:
    said = None if kind is None else chances(routes, kind)
    return emulate(routes, E, SLOTS, ratio, LRU(), chances=said, **{"predict": 0.0, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.05, 0.25, 1.0, 4.0])
def test_knowing_the_future_is_the_bound(routes: np.ndarray, ratio: float) -> None:
    base, right = run(routes, ratio), run(routes, ratio, "right")
    assert base.guesses == base.useful == 0
    assert base.seconds == pytest.approx(N * L + base.misses * ratio)
    # Prefetch alone wins at most twofold, and never more than the stall.
    assert max(N * L, base.seconds / 2 - 1) <= right.seconds < base.seconds


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("kind", ["half", "wrong"])
def test_the_gate_never_loses_more_than_one_percent(routes: np.ndarray, ratio: float, kind: str) -> None:
    assert run(routes, ratio, kind, predict=0.001).seconds < 1.01 * run(routes, ratio).seconds


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_useless_predictor_of_one_percent_costs_less_than_that(routes: np.ndarray, ratio: float) -> None:
    assert run(routes, ratio, "wrong", predict=0.01).seconds < 1.01 * run(routes, ratio).seconds


def test_half_right_guesses_help_where_loads_fit(routes: np.ndarray) -> None:
    assert run(routes, 0.5, "half").seconds < 0.9 * run(routes, 0.5).seconds


def test_a_predictor_that_costs_more_than_it_saves_is_left_alone(routes: np.ndarray) -> None:
    assert run(routes, 0.05, "half", predict=0.5).seconds < 1.05 * run(routes, 0.05).seconds


def test_nothing_is_asked_where_everything_is_resident(routes: np.ndarray) -> None:
    everything = emulate(routes, E, L * E, 1.0, LRU(), chances=chances(routes, "half"), predict=0.1, warm=N // 2)
    # One pass in sixteen is watched, at a tenth of a layer's compute or less.
    assert everything.misses == 0 and everything.seconds < (N - N // 2) * L * (1 + 0.1 / 16 + 0.005)


def test_ranks_of_a_predictor_that_knows_beat_the_average() -> None:
    rng = np.random.default_rng(2)
    # A cycle longer than the cache: the average sees all experts alike, and Belady's choice is what was used last.
    cycle = np.stack([rng.permutation(E) for _ in range(L)])
    ids = np.stack([cycle[:, [n % E, (n + 5) % E]] for n in range(N)])
    nothing = np.full((N, L, E), np.nan, dtype=np.float32)
    keep = np.zeros((N, L, E), dtype=np.float32)
    at = np.full((L, E), np.inf)
    for n in range(N - 1, -1, -1):
        keep[n] = np.exp(-(at - n - 1) / 8)
        np.put_along_axis(at, ids[n], n, axis=1)
    ranked = emulate(ids, E, SLOTS, 1.0, Guided(), chances=Chances(nothing, nothing, keep), predict=0.0)
    average = emulate(ids, E, SLOTS, 1.0, Guided())
    assert ranked.misses < 0.9 * average.misses


def test_what_comes_next_is_not_pushed_out(routes: np.ndarray) -> None:
    said = chances(routes, "right")
    held = emulate(routes, E, SLOTS, 0.25, Guided(), chances=said, predict=0.0)
    assert held.seconds == pytest.approx(N * L, rel=0.01)
