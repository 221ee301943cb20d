from __future__ import annotations

import numpy as np
import pytest

from specmoe.speculation import RouteTrace
from specmoe.speculation.counting import LinkCounts, membership
from specmoe.speculation.evaluation import measure, replay
from specmoe.speculation.evaluation.metrics import calibration_error, reliability


def random_trace(N: int = 400, L: int = 3, E: int = 8, K: int = 2) -> RouteTrace:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(E)[:K] for _ in range(N * L)]).reshape(N, L, K)
    return RouteTrace(ids, np.array([0, N // 2, N]), E)


def test_the_truth_is_perfect() -> None:
    trace = random_trace()
    truth = membership(trace.experts, 8)
    heaviest = np.zeros_like(truth)
    np.put_along_axis(heaviest, trace.experts[:, :, :1], 1.0, axis=2)
    figures = measure(trace, 0.9 * truth + 0.05 * heaviest, heaviest, slots=(4,))
    for values in (figures.top1, figures.heaviest, figures.recall_k, figures.recall_2k, figures.absent_precision[4]):
        assert np.allclose(values, 1.0)
    assert np.allclose(figures.absent_recall[4], 1.0)


def test_knowing_nothing_is_chance() -> None:
    trace = random_trace(4000)
    figures = measure(trace, np.random.default_rng(1).random((4000, 3, 8)).astype(np.float32))
    assert figures.mean(figures.recall_k) == pytest.approx(2 / 8, abs=0.02)
    assert figures.mean(figures.recall_2k) == pytest.approx(4 / 8, abs=0.02)
    assert figures.mean(figures.top1) == pytest.approx(1 / 8, abs=0.02)
    assert np.isnan(figures.heaviest).all()


def test_calibration_error_is_the_distance_from_the_truth() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((20000, 1, 4))
    used = rng.random(p.shape) < p
    assert calibration_error(p, used)[0] < 0.01
    assert calibration_error(np.clip(p + 0.2, 0, 1), used)[0] > 0.15
    said, true = reliability(p, used)
    assert np.abs(said - true).max() < 0.03


def test_replay_asks_before_it_tells() -> None:
    trace = random_trace(60)
    said = replay(LinkCounts(trace), trace, keep=True)
    assert said.chances.shape == (60, 3, 8) and said.keep is None and said.heaviest is None and said.seconds > 0
    # At a sequence's first layer nothing is known but frequencies: both sequences are told the same.
    order = np.argsort(-said.chances[[0, 30], 0], axis=1)[:, :2]
    assert set(order[0]) == set(order[1])
