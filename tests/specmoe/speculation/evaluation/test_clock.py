from __future__ import annotations

import numpy as np
import pytest

from specmoe.speculation import CostGate, RouteTrace
from specmoe.speculation.counting import membership
from specmoe.speculation.evaluation import lru_scores
from specmoe.speculation.evaluation.clock import run_clock

L, E, K, N = 4, 16, 2, 250


@pytest.fixture(scope="module")
def trace() -> RouteTrace:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.choice(E, K, replace=False, p=np.arange(1, E + 1) / 136) for _ in range(N * L)])
    return RouteTrace(ids.reshape(N, L, K), np.array([0, N]), E)


def timed(trace: RouteTrace, load: float, guess: str, **options: float) -> float:
    truth = membership(trace.experts, E).astype(np.float64)
    noise = np.random.default_rng(1).random(truth.shape)
    guesses = {"right": truth, "half": 0.7 * truth + 0.15 * (noise < 0.1), "wrong": 0.9 * (1 - truth) * (noise < 0.2)}
    run = run_clock(
        trace, 6, lru_scores(trace), compute=1.0, load=load, guess=lambda n, layer: guesses[guess][n, layer],
        gate=CostGate(), **options,
    )  # fmt: skip
    return run.seconds


@pytest.mark.parametrize("load", [0.05, 0.25, 1.0, 4.0])
def test_knowing_the_future_is_the_bound(trace: RouteTrace, load: float) -> None:
    base = run_clock(trace, 6, lru_scores(trace), compute=1.0, load=load)
    assert base.useful == base.wasted == 0
    assert base.seconds == pytest.approx(N * L * 1.0 + base.misses * load)
    right = timed(trace, load, "right")
    # Prefetch alone wins at most twofold, and never more than the stall.
    assert max(N * L, base.seconds / 2 - 1) <= right < base.seconds


@pytest.mark.parametrize("load", [0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("guess", ["half", "wrong"])
def test_the_gate_never_loses_more_than_one_percent(trace: RouteTrace, load: float, guess: str) -> None:
    base = run_clock(trace, 6, lru_scores(trace), compute=1.0, load=load).seconds
    assert timed(trace, load, guess, predict=0.001) < 1.01 * base


def test_half_right_guesses_help_where_loads_fit(trace: RouteTrace) -> None:
    base = run_clock(trace, 6, lru_scores(trace), compute=1.0, load=0.5).seconds
    assert timed(trace, 0.5, "half") < 0.9 * base


def test_a_predictor_that_costs_more_than_it_saves_is_left_alone(trace: RouteTrace) -> None:
    base = run_clock(trace, 6, lru_scores(trace), compute=1.0, load=0.05).seconds
    assert timed(trace, 0.05, "half", predict=0.5) < 1.05 * base
