from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from specmoe.speculation import MovingAverage, RouteTrace, load_routes
from specmoe.speculation.evaluation import belady_scores, cache_hits, lru_scores, replay
from specmoe.speculation.evaluation.caching import closed, recorded_scores, tokens_until_next_use


def one_layer(ids: list[list[int]], experts: int = 4) -> RouteTrace:
    return RouteTrace(np.array(ids)[:, None], np.array([0, len(ids)]), experts)


def test_lru_by_hand() -> None:
    # 0 miss, 1 miss, 2 miss (0 goes), 0 miss (1 goes), 2 hit.
    assert cache_hits(one_layer([[0], [1], [2], [0], [2]]), 2, lru_scores(one_layer([[0], [1], [2], [0], [2]])))[
        0
    ] == pytest.approx(1 / 5)


def test_belady_by_hand() -> None:
    trace = one_layer([[0], [1], [2], [0], [2]])
    # At 2, 1 goes, which is never used again: both 0 and 2 hit.
    assert cache_hits(trace, 2, belady_scores(trace))[0] == pytest.approx(2 / 5)


def test_of_one_token_the_lightest_goes_first() -> None:
    trace = one_layer([[0, 1], [2, 3], [0, 1]])
    assert cache_hits(trace, 3, lru_scores(trace))[0] == pytest.approx(1 / 6)


def test_next_uses() -> None:
    until = tokens_until_next_use(one_layer([[0], [1], [0]], 3))
    assert until[:, 0].tolist() == [[2, 1, np.inf], [1, np.inf, np.inf], [np.inf] * 3]


@pytest.mark.parametrize("slots", [2, 4, 7, 8])
def test_belady_is_the_bound(slots: int) -> None:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(8)[:2] for _ in range(300 * 3)]).reshape(300, 3, 2)
    trace = RouteTrace(ids, np.array([0, 100, 300]), 8)
    best = cache_hits(trace, slots, belady_scores(trace))
    for scores in (lru_scores(trace), recorded_scores(rng.random((300, 3, 8)))):
        assert (cache_hits(trace, slots, scores) <= best + 1e-12).all()


def test_refuses_fewer_slots_than_a_token_needs() -> None:
    trace = one_layer([[0, 1]])
    with pytest.raises(ValueError, match="at least K=2, got 1"):
        cache_hits(trace, 1, lru_scores(trace))


@pytest.mark.slow
def test_a_moving_average_on_real_routes() -> None:
    """The figures that a learned score is compared with."""
    folder = Path(os.environ.get("MOE_DATA_DIR", "../shared/data"))
    if not (folder / "gptoss20b_routes.npz").is_file():
        pytest.skip("needs gptoss20b_routes.npz in MOE_DATA_DIR")
    trace = load_routes(folder / "gptoss20b_routes.npz").split(0.2)[1]
    kept = replay(MovingAverage(24, 32, 4), trace, keep=True).keep
    assert kept is not None
    for slots, least in ((8, 0.25), (12, 0.25), (16, 0.25)):
        lru, best, average = (
            cache_hits(trace, slots, s).mean() for s in (lru_scores(trace), belady_scores(trace), recorded_scores(kept))
        )
        assert closed(average, lru, best) > least
