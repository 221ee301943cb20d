"""Interleaved comparison with other libraries, and the tables at the end of the run.

`pytest benchmarks` times each op beside its peers, `--small` uses sizes for a quick look, `-k OLMoE` one model's.
pytest-benchmark times ours: `--benchmark-json=FILE` writes its figures, `--benchmark-disable` only compares results.
On a machine that others use, OMP_NUM_THREADS=1 with `--benchmark-timer=time.process_time` compares CPU time; floors are
of wall-clock time and say nothing there.
"""

from __future__ import annotations

import datetime
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.utils import load_timer

sys.path.insert(0, str(Path(__file__).parent))

import measure  # noqa: E402
from measure import Call, distance, interleave, product_rate  # noqa: E402
from report import Record, merge, processor, tables  # noqa: E402

from moe_kernels.native import core, native  # noqa: E402

SESSION = pytest.StashKey["Session"]()


class Shape(NamedTuple):
    """Sizes of one MoE layer."""

    E: int
    K: int
    H: int
    I: int


# The layers of published models.
MODELS = {
    "OLMoE": Shape(64, 8, 2048, 1024),
    "Qwen3-30B-A3B": Shape(128, 8, 2048, 768),
    "Mixtral-like": Shape(8, 2, 2048, 4096),
}
SMALL_MODELS = {"small": Shape(16, 4, 256, 128), "small-wide": Shape(4, 2, 256, 512)}


class Session:
    """What one run of the benchmarks was asked for and has found."""

    def __init__(self, config: pytest.Config) -> None:
        self.small = config.getoption("--small")
        self.dtype = config.getoption("--dtype")
        self.rounds = config.getoption("--rounds") or (3 if self.small else 7)
        self.limit = config.getoption("--limit") or (0.5 if self.small else 20.0)
        measure.rotated_bytes = (config.getoption("--rotate-gib") or (1 / 16 if self.small else 2)) * 2**30
        measure.timer = load_timer(config.getoption("benchmark_timer")).target
        self.huge_pages = config.getoption("--huge-pages")
        self.folder = Path(config.getoption("--output"))
        self.records: list[Record] = []
        # Of each record, what pytest-benchmark keeps beside the times.
        self.extras: list[dict[str, Any]] = []
        # Of a run that times nothing, each arm's largest distance from ours.
        self.distances: dict[str, float] = {}
        self.reasons: dict[str, str] = {}

    @property
    def results(self) -> Path:
        return self.folder / ("small.json" if self.small else "results.json")

    def add(self, record: Record, extra: dict[str, Any]) -> None:
        """Keep a record, in the file of results and in pytest-benchmark's `extra_info`."""
        self.records.append(record)
        self.extras.append(extra)
        for earlier, known in zip(self.records, self.extras, strict=True):
            if (earlier.how, earlier.threads) == (record.how, record.threads):
                # The same processor: what it has once done it can do.
                earlier.product = max(earlier.product, record.product)
            known.update(earlier.beside_ours())
        merge(self.results, self.records)

    def unavailable(self, arm: str, reason: Exception) -> None:
        """Remember why an arm is missing; the first reason is told."""
        self.reasons.setdefault(arm, str(reason).strip().splitlines()[0] or type(reason).__name__)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("benchmarks of moe_kernels")
    group.addoption("--small", action="store_true", help="small shapes, for a quick look")
    group.addoption("--dtype", choices=["bfloat16", "float16", "float32"], help="default: what the benchmark is about")
    group.addoption("--rounds", type=int, help="of each arm, default 7; more for short calls")
    group.addoption("--limit", type=float, help="seconds for an arm of a case, default 20; slow arms get fewer rounds")
    group.addoption("--rotate-gib", type=float, help="memory to rotate the weights through, default 2")
    group.addoption("--huge-pages", action="store_true", help="moe_kernels.collapse_pages on the model's weights")
    folder = Path(__file__).parent / "results"
    group.addoption("--output", default=str(folder), help="folder for the results, default benchmarks/results")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION] = Session(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    names = metafunc.fixturenames
    if "model" in names:
        models = SMALL_MODELS if session.small else MODELS
        metafunc.parametrize("model", list(models), indirect=True, scope="module")
    if "shape" in names:
        shape = Shape(8, 2, 256, 128) if session.small else Shape(48, 6, 1536, 640)
        metafunc.parametrize("shape", [shape], ids=_name)
    if "T" in names:
        small, full = getattr(metafunc.module, "COUNTS", ((1, 64), (1, 16, 256, 1024)))
        metafunc.parametrize("T", small if session.small else full, ids=lambda T: f"T{T}")
    if "dtype" in names and "model" not in names:
        dtypes = [session.dtype] if session.dtype else ["float32", "bfloat16"]
        metafunc.parametrize("dtype", [getattr(torch, name) for name in dtypes], ids=dtypes)


@pytest.fixture(scope="session")
def session(request: pytest.FixtureRequest) -> Session:
    return request.config.stash[SESSION]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, session: Session) -> Iterator[Any]:
    """The layer of one model with its copies of the weights; the previous one's are freed before."""
    from layers import Layer

    models = SMALL_MODELS if session.small else MODELS
    layer = Layer(request.param, models[request.param], getattr(torch, session.dtype or "bfloat16"), session)
    yield layer
    layer.free()


@pytest.fixture
def compare(benchmark: Any, request: pytest.FixtureRequest, session: Session) -> Callable[..., Record | None]:
    """Time arms in turn, ours first, and add a row to the tables; once in a test.

    With `--benchmark-disable` the results are compared, nothing is timed and there is no row: it returns None.

    Args:
        arms: name to call; a call gets the number of its round, which chooses the copy of the data. None: no such arm.
        nbytes, flops: what the work needs at least.
        dtype: of the data.
        kind: format of the products, a key of `measure.KINDS`; the dtype's by default.
        copies: if given, the calls get their number modulo this.
        check: whether the arms' results are compared with ours.
        shape, T, sizes: the case, by default what the test's parameters say.
    """

    def run(
        arms: dict[str, Call | None],
        *,
        nbytes: float,
        flops: float = 0.0,
        dtype: torch.dtype = torch.float32,
        kind: str | None = None,
        copies: int | None = None,
        check: bool = True,
        op: str | None = None,
        shape: str | None = None,
        sizes: Shape | None = None,
        T: int | None = None,
    ) -> Record | None:
        given = request.node.callspec.params
        sizes = sizes or given.get("shape")
        calls = {
            name: call if copies is None else (lambda turn, call=call: call(turn % copies))
            for name, call in arms.items()
            if call is not None
        }
        benchmark.group = op = op or request.node.originalname.removeprefix("test_")
        with torch.inference_mode():
            first, distances = warm_up(calls, check)
            if benchmark.disabled:
                benchmark.pedantic(next(iter(calls.values())), args=(0,))
                for name, value in distances.items():
                    session.distances[name] = max(value, session.distances.get(name, 0.0))
                return None
            running = {name: calls[name] for name in first}
            measured = interleave(benchmark, running, first, session.rounds, session.limit)
        name = str(dtype).removeprefix("torch.")
        threads = torch.get_num_threads()
        product = product_rate(kind or name, threads)
        record = Record(
            op=op,
            shape=shape or (_name(sizes) if sizes else request.node.callspec.id),
            sizes=sizes._asdict() if sizes else {},
            T=T or given.get("T", 0),
            dtype=name,
            threads=threads,
            seconds=measured.seconds,
            rounds=measured.rounds,
            distance=distances,
            nbytes=nbytes,
            operations=flops,
            read=measured.read,
            product=product.value,
            how=product.how,
            date=datetime.date.today().isoformat(),
            isa=core().isa() if native()[0] is not None else "reference",
        )
        session.add(record, benchmark.extra_info)
        return record

    def warm_up(calls: dict[str, Call], check: bool) -> tuple[dict[str, float], dict[str, float]]:
        first: dict[str, float] = {}
        distances: dict[str, float] = {}
        wanted: object = None
        for number, (name, call) in enumerate(calls.items()):
            begin = measure.timer()
            try:
                got = call(0)
            except (RuntimeError, NotImplementedError) as error:
                # A peer that cannot do this case here is listed with its reason below the tables; ours has to do it.
                if number == 0:
                    raise
                session.unavailable(name, error)
                continue
            first[name] = measure.timer() - begin
            if number == 0:
                wanted = got
            elif check:
                pairs = zip(_tensors(got), _tensors(wanted), strict=True)
                distances[name] = max(distance(theirs, ours) for theirs, ours in pairs)
        return first, distances

    return run


def _name(shape: Shape) -> str:
    return f"E{shape.E}-K{shape.K}-H{shape.H}-I{shape.I}"


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash[SESSION]
    write = terminalreporter.write_line
    if session.distances:
        told = ", ".join(f"{name} {value:.1e}" for name, value in session.distances.items())
        write(f"largest relative distance from our result: {told}")
    if not session.records:
        return
    last = session.records[-1]
    terminalreporter.section("time, floor and peers")
    waiting = os.environ.get("OMP_WAIT_POLICY", "not set")
    write(f"{processor()}, {last.threads} threads, our instructions: {last.isa}, OMP_WAIT_POLICY: {waiting}")
    if measure.timer is not time.perf_counter:
        write("times are of the CPU, floors are not")
    write("floor = max(bytes / rate of reading memory, operations / rate of products on registers), both measured here")
    write("peers: their time over ours, above 1 means that ours is faster")
    loops = {r.how: r.product for r in session.records if r.operations}
    write("products on registers: " + ", ".join(f"{how} {rate / 1e12:.3f} TFLOP/s" for how, rate in loops.items()))
    reads = sorted(r.read for r in session.records)
    write(f"memory, beside each case: {reads[0] / 1e9:.1f} to {reads[-1] / 1e9:.1f} GB/s")
    write("")
    for line in itertools.chain(tables(session.records), (f"no {a}: {why}" for a, why in session.reasons.items())):
        write(line)
    from plot import draw

    known = [r for r in merge(session.results, session.records) if (r.cpu, r.threads) == (last.cpu, last.threads)]
    session.results.with_suffix(".md").write_text("\n".join(tables(known)) + "\n")
    figure = session.results.with_suffix(".png")
    draw(known, figure)
    # The figure is that of fused_experts: without a run of it there is none.
    beside = ".md and .png" if figure.exists() else ".md"
    write(f"written: {session.results} and, with every earlier run on this machine, {beside} beside it")
