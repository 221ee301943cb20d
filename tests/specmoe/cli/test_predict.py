from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.speculation import RouteTrace, save_routes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 5, 120)
    ids = np.stack([np.stack([(tokens + layer) % 6, (tokens + layer + 2) % 6], 1) for layer in range(3)], 1)
    weights = np.tile(np.array([0.7, 0.3], dtype=np.float16), (120, 3, 1))
    trace = RouteTrace(ids.astype(np.uint8), np.arange(0, 121, 12), 6, weights, tokens.astype(np.int32))
    save_routes(trace, tmp_path / "t.npz")
    return tmp_path / "t.npz"


def test_train_and_evaluate(specmoe: Callable[..., Any], file: Path, tmp_path: Path) -> None:
    fused, learned = tmp_path / "f.npz", tmp_path / "b.pt"
    done = specmoe("predict", "train", file, "--output", fused, "--epochs", 2, "--width", 8)
    assert done.code == 0 and "fused" in done.out and "parameters" in done.out, done.err
    done = specmoe("predict", "train", file, "--output", learned, "--kind", "baseline", "--steps", 2)
    assert done.code == 0 and "2 steps" in done.out, done.err
    done = specmoe("predict", "train", file, "--output", learned, "--kind", "baseline", "--steps", 3, "--resume")
    assert done.code == 0 and "3 steps" in done.out, done.err
    out = tmp_path / "report"
    done = specmoe(
        *("predict", "evaluate", file, "--output", out, "--weights", fused, "--weights", learned),
        *("--slots", "3", "--ablate", "--layer-us", "1000"),
    )
    assert done.code == 0, done.err
    for name in (
        "frequency",
        "naive Bayes",
        "fused (f)",
        "fused without path",
        "baseline (3 steps)",
        "share of a layer",
    ):
        assert name in done.out, name
    assert {p.name for p in out.iterdir()} == {"table.md", "figures.json", "recall.png", "calibration.png"}
    rows = json.loads((out / "figures.json").read_text())
    table = next(row for row in rows if row["name"] == "token table")
    # The routes are a function of the token.
    assert min(table["recall_k"]) == 1.0 and table["absent_precision"]["3"]
    assert any(row["closed"] for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train", "FILE", "--output", "x.npz", "--kind", "huge"], "--kind: expected fused or one of baseline"),
        (["train", "FILE", "--output", "x.pt"], "--output: expected a .npz file"),
        (["train", "FILE", "--output", "x.npz", "--resume"], "--resume: expected with another --kind"),
        (["evaluate", "FILE", "--output", "o", "--slots", "a"], "--slots: expected numbers"),
        (["evaluate", "FILE", "--output", "o", "--slots", "1"], "--slots: expected at least K=2"),
        (["evaluate", "FILE", "--output", "o", "--weights", "absent.npz"], "--weights: expected a file"),
    ],
    ids=["kind", "output", "resume", "slots", "few", "weights"],
)
def test_refuses(specmoe: Callable[..., Any], file: Path, options: list[str], message: str) -> None:
    done = specmoe("predict", *[str(file) if o == "FILE" else o for o in options])
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1
