"""Interleaved comparison with transformers, and the table at the end of the run.

`pytest benchmarks` times each op beside its peers; `--small` uses sizes for a quick look.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from measure import floor_seconds, matrix_rate, read_bandwidth  # noqa: E402

ROWS = pytest.StashKey[list["Row"]]()


class Shape(NamedTuple):
    """Sizes of one MoE layer."""

    E: int
    K: int
    H: int
    I: int


class Row(NamedTuple):
    op: str
    case: str
    seconds: float
    floor: float
    eager: float | None
    grouped: float | None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--small", action="store_true", help="small shapes, for a quick look")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    small = metafunc.config.getoption("--small")
    if "shape" in metafunc.fixturenames:
        shape = Shape(8, 2, 256, 128) if small else Shape(48, 6, 1536, 640)
        metafunc.parametrize("shape", [shape], ids=lambda s: f"E{s.E}-K{s.K}-H{s.H}-I{s.I}")
    if "T" in metafunc.fixturenames:
        metafunc.parametrize("T", (1, 64) if small else (1, 16, 256, 1024), ids=lambda T: f"T{T}")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", (torch.float32, torch.bfloat16), ids=("f32", "bf16"))


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Time `ours` and the peers in turn, each call on the next copy of its data.

    The first argument of every arm is a copy's number. pytest-benchmark reports ours; the peers run between its rounds.
    """

    def run(
        ours: Callable[[int], object],
        eager: Callable[[int], object] | None,
        grouped: Callable[[int], object] | None,
        *,
        nbytes: float,
        flops: float = 0.0,
        dtype: torch.dtype = torch.float32,
        copies: int = 1,
        rounds: int = 9,
    ) -> None:
        turn = itertools.count()
        times: dict[str, list[float]] = {"eager": [], "grouped": []}

        def between() -> tuple[tuple[int], dict[str, Any]]:
            for name, call in (("eager", eager), ("grouped", grouped)):
                if call is not None:
                    copy = next(turn) % copies
                    start = time.perf_counter()
                    call(copy)
                    times[name].append(time.perf_counter() - start)
            return (next(turn) % copies,), {}

        with torch.inference_mode():
            benchmark.pedantic(ours, setup=between, rounds=rounds, warmup_rounds=2)
        seconds = benchmark.stats.stats.median
        floor = floor_seconds(nbytes, flops, dtype)
        # The first two rounds are the warm-up.
        peers = {name: statistics.median(values[2:]) if values else None for name, values in times.items()}
        op = request.node.originalname.removeprefix("test_")
        case = request.node.callspec.id
        request.config.stash[ROWS].append(Row(op, case, seconds, floor, peers["eager"], peers["grouped"]))
        benchmark.extra_info.update(floor_seconds=floor, eager_seconds=peers["eager"], grouped_mm=peers["grouped"])

    return run


def _ratio(peer: float | None, seconds: float) -> str:
    return "-" if peer is None else f"{peer / seconds:.2f}x"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    rates = ", ".join(f"{matrix_rate(d) / 1e12:.2f} TFLOP/s {str(d)[6:]}" for d in (torch.float32, torch.bfloat16))
    write = terminalreporter.write_line
    terminalreporter.section("time, floor and peers")
    write(f"{torch.get_num_threads()} threads; measured here: read {read_bandwidth() / 1e9:.1f} GB/s, torch.mm {rates}")
    write("floor = max(bytes / read, FLOPs / torch.mm); peers: their time over ours, above 1 means that ours is faster")
    write(f"{'op':<22}{'case':<34}{'ms':>9}{'floor ms':>10}{'of floor':>10}{'eager':>9}{'grouped_mm':>12}")
    for row in rows:
        write(
            f"{row.op:<22}{row.case:<34}{row.seconds * 1e3:>9.3f}{row.floor * 1e3:>10.3f}"
            f"{row.floor / row.seconds:>10.2f}{_ratio(row.eager, row.seconds):>9}{_ratio(row.grouped, row.seconds):>12}"
        )
