"""`specmoe offload bench` and `specmoe doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specmoe.offload.doctor import Diagnosis
from specmoe.speculation import RouteTrace, save_routes

from ..offload.tiny_checkpoints import write_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MOE_DATA_DIR", raising=False)


def test_doctor(specmoe: Any, tmp_path: Path) -> None:
    write_checkpoint("gpt_oss_mxfp4", tmp_path / "model")
    done = specmoe("doctor", "--model", tmp_path / "model", "--memory", "40%")
    assert done.code == 0, done.err
    assert "18 experts" in done.out.replace("experts: 18", "18 experts") and "tokens/s on demand" in done.out
    assert not list((tmp_path / "cache").iterdir())
    assert specmoe("doctor", "--model", tmp_path / "no").code == 2


def test_doctor_counts_the_rest_of_the_model_and_the_page_cache() -> None:
    expert = 1 << 20
    found = Diagnosis(expert, 80, 10, 2, 4e-3, 1e-3, 2e-3, 30e-3, 100 * expert)
    everything = 80 * expert
    assert found.tokens_per_second(everything) == pytest.approx((20.0, 20.0, 20.0))
    demand, ahead, _ = found.tokens_per_second(everything // 4)
    assert demand == pytest.approx(1 / (0.03 + 10 * (2e-3 + found.misses(everything // 4) * 4e-3)))
    assert demand < ahead
    assert not found.page_cache_wins(everything // 4)
    roomy = Diagnosis(expert, 80, 10, 2, 4e-3, 1e-3, 2e-3, 30e-3, 400 * expert)
    assert roomy.page_cache_wins(everything // 4)
    assert "the page cache wins and is used" in roomy.lines(everything // 4)[-1]
    assert roomy.tokens_per_second(everything // 4, cached=True)[0] > demand


def test_emulated_bench(specmoe: Any, tmp_path: Path) -> None:
    routes = np.random.default_rng(0).integers(0, 8, (120, 2, 2)).astype(np.uint8)
    save_routes(RouteTrace(routes, np.arange(0, 121, 20), 8), tmp_path / "routes.npz")
    out = tmp_path / "out"
    done = specmoe(
        "offload", "bench", "--emulated", "--trace", tmp_path / "routes.npz", "--sweep-tokens", 24, "--output", out
    )
    assert done.code == 0, done.err
    assert "a clock that counts" in done.out and "of the oracle's gain" in done.out
    content = json.loads((out / "emulated.json").read_text())
    assert content["kind"] == "emulated" and content["machine"]["cores"] and len(content["rows"]) == 3 * 7 * 12
    assert (out / "emulated.png").stat().st_size > 1000


def test_bench_without_routes_is_one_line(specmoe: Any, tmp_path: Path) -> None:
    done = specmoe("offload", "bench", "--output", tmp_path / "out")
    assert done.code == 2 and "--trace: expected a file of routes" in done.err


@pytest.mark.slow
def test_model_bench(specmoe: Any, tmp_path: Path) -> None:
    write_checkpoint("qwen3_moe", tmp_path / "model")
    out = tmp_path / "out"
    done = specmoe(
        "offload", "bench", "--model", tmp_path / "model", "--memory", "50%", "--tokens", 8, "--rounds", 2,
        "--output", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    rows = json.loads((out / "model.json").read_text())["rows"]
    assert all(row["outputs_equal"] for row in rows)
    assert (out / "model.png").stat().st_size > 1000


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the file has a name")
def test_the_doctors_file_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specmoe.offload import doctor

    names: list[list[Path]] = []
    real = doctor._seconds

    def look(*arguments: Any) -> float:
        names.append(list(tmp_path.iterdir()))
        return real(*arguments)

    monkeypatch.setattr(doctor, "_seconds", look)
    cold, cached = doctor._loads(tmp_path, 10_000)
    assert names == [[], [], []] and cold > 0 and cached > 0
