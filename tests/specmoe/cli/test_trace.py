from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.speculation import RouteTrace, load_routes, save_routes


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(6)[:2] for _ in range(40 * 3)]).reshape(40, 3, 2)
    save_routes(RouteTrace(ids.astype(np.uint8), np.arange(0, 41, 4), 6), tmp_path / "t.npz")
    return tmp_path / "t.npz"


def test_info(specmoe: Callable[..., Any], file: Path) -> None:
    done = specmoe("trace", "info", file)
    assert done.code == 0 and "10 sequences of 4 to 4 tokens (median 4), 40 in all" in done.out
    assert "3 layers, 2 of 6 experts; beside them: nothing" in done.out


def test_split(specmoe: Callable[..., Any], file: Path) -> None:
    done = specmoe("trace", "split", file, "--held-out", "0.3")
    assert done.code == 0
    assert len(load_routes(file.with_name("t.train.npz"))) == 7 and len(load_routes(file.with_name("t.test.npz"))) == 3


def test_fetch_without_a_network(specmoe: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "o.npz"
    done = specmoe("trace", "fetch", "--source", "http://127.0.0.1:9", "--output", out, "--cache", tmp_path / "c")
    assert done.code == 2 and done.err.startswith("error: trace fetch: http://127.0.0.1:9/map.json could not be")
    assert done.err.count("\n") == 1 and not out.exists()


def test_record_from_a_trained_model(
    specmoe: Callable[..., Any], tiny: list[str], corpus: Path, tmp_path: Path
) -> None:
    assert specmoe("train", *tiny, "--no-progress").code == 0
    out = tmp_path / "t.npz"
    model = tmp_path / "run" / "model"
    done = specmoe(
        "trace", "record", model, "--text", corpus, "--output", out, "--prompts", 3, "--length", 8, "--hidden"
    )
    assert done.code == 0, done.err
    trace = load_routes(out)
    assert trace.experts.shape == (24, 1, 2) and trace.num_experts == 3 and len(trace) == 3
    assert trace.residuals is not None and trace.residuals.shape == (24, 1, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "absent.txt", "--output", "t.npz"], "--text: expected a file"),
        (["--text", "TEXT", "--output", "t.csv"], "--output: expected a .npz file"),
    ],
    ids=["text", "output"],
)
def test_record_refuses(specmoe: Callable[..., Any], corpus: Path, options: list[str], message: str) -> None:
    done = specmoe("trace", "record", "nowhere", *[str(corpus) if o == "TEXT" else o for o in options])
    assert done.code == 2 and message in done.err
