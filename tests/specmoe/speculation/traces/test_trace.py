from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specmoe.speculation import RouteTrace, load_routes, save_routes
from specmoe.speculation.traces.statistics import describe


def full_trace() -> RouteTrace:
    rng = np.random.default_rng(0)
    lengths = (3, 5, 2, 4)
    N, L, K, E, H = sum(lengths), 3, 2, 6, 4
    ids = np.stack([rng.permutation(E)[:K] for _ in range(N * L)]).reshape(N, L, K)
    return RouteTrace(
        ids.astype(np.uint8),
        np.cumsum([0, *lengths]).astype(np.int64),
        E,
        weights=rng.random((N, L, K)).astype(np.float16),
        tokens=np.arange(N, dtype=np.int32),
        residuals=rng.normal(size=(N, L, H)).astype(np.float16),
        shared=rng.normal(size=(N, L, H)).astype(np.float16),
        labels=np.array(["a", "b", "a", "c"]),
    )


def test_everything_goes_with_its_sequence() -> None:
    trace = full_trace()
    taken = trace.take(np.array([2, 0]))
    rows = [8, 9, 0, 1, 2]
    for name in ("experts", "weights", "tokens", "residuals", "shared"):
        assert np.array_equal(getattr(taken, name), getattr(trace, name)[rows]), name
    assert taken.labels is not None and taken.labels.tolist() == ["a", "a"]
    part = trace.layers(1, 2)
    assert part.weights is not None and np.array_equal(part.weights, trace.weights[:, 1:])  # type: ignore[index]
    assert part.tokens is trace.tokens
    assert np.flatnonzero(trace.first_tokens).tolist() == [0, 3, 8, 10]


def test_everything_is_read_back(tmp_path: Path) -> None:
    trace = full_trace()
    save_routes(trace, tmp_path / "t.npz")
    back = load_routes(tmp_path / "t.npz")
    for name in ("experts", "starts", "weights", "tokens", "residuals", "shared", "labels"):
        assert np.array_equal(getattr(back, name), getattr(trace, name)), name


@pytest.mark.parametrize("name", ["probs", "token", "residual", "dataset"])
def test_optional_arrays_must_fit(tmp_path: Path, name: str) -> None:
    trace = full_trace()
    wrong = {
        "probs": np.zeros((14, 3, 1)),
        "token": np.zeros(13, int),
        "residual": np.zeros((14, 2, 4)),
        "dataset": [""],
    }
    np.savez(tmp_path / "t.npz", experts=trace.experts, trace_start=trace.starts, **{name: wrong[name]})
    with pytest.raises(ValueError, match=f"{name}: expected"):
        load_routes(tmp_path / "t.npz")


def test_statistics() -> None:
    ids = np.array([[[0, 1], [2, 3]], [[1, 0], [0, 1]], [[0, 1], [2, 3]]])
    figures = describe(RouteTrace(ids, np.array([0, 2, 3]), 4))
    assert (figures.sequences, figures.tokens, figures.layers, figures.top_k) == (2, 3, 2, 2)
    assert figures.repeated.tolist() == [1.0, 0.0]
    assert figures.entropy[0] == pytest.approx(0.5) and figures.has == ()
