"""What is compiled before the benchmarks are what they call: the same rows, of as many experts, with the same tiles."""

from __future__ import annotations

import pytest
import torch
from gpu import shapes, warm
from gpu.plan import rows
from gpu.results import Row

from moe_kernels.backends.triton.platform import Device
from moe_kernels.backends.triton.tiles import rows_tile

H200 = Device(90, 132, 232448, False)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    monkeypatch.setattr("gpu.arms.ours", lambda device: ["triton", "cuda"])
    return rows(torch.device("cpu"), small=False)


def test_every_row_of_triton_once(planned: list[Row]) -> None:
    found = [(row.group, row.case, row.T, row.arm) for row in warm.kernels_of(planned)]
    assert len(found) == len(set(found))
    wanted = {(r.group, r.case, min(r.T, warm.TOKENS), r.arm) for r in planned if r.arm.startswith("triton")}
    assert {row for row in found if row[3].startswith("triton")} == {r for r in wanted if r[0] not in warm.ELSEWHERE}
    assert not any(arm.startswith(("cuda", "torch")) for *_, arm in found)


def test_fewer_tokens_have_the_same_tiles(planned: list[Row]) -> None:
    for row in planned:
        if row.case in shapes.MODELS:
            shape, few = shapes.MODELS[row.case], min(row.T, warm.TOKENS)
            tiles = [rows_tile(H200, 2, T * shape.K, shape.E) for T in (row.T, few)]
            assert tiles[0] == tiles[1], row


@pytest.mark.parametrize("group", ["forward", "forward+backward", "decode", "quantized", "route", "permute"])
def test_a_row_is_gone_through(group: str) -> None:
    arm = "reference nf4" if group == "quantized" else "reference"
    assert warm.warm(Row(group, "Qwen3-30B-A3B", 9, arm), "cpu", small=True).endswith(" s")


def test_a_broken_process_costs_what_was_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        """Breaks at its second task."""

        def __init__(self, *_: object, **__: object) -> None:
            self.tasks = 0

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, *_: object) -> warm.concurrent.futures.Future[str]:
            self.tasks += 1
            future: warm.concurrent.futures.Future[str] = warm.concurrent.futures.Future()
            if self.tasks == 1:
                future.set_result("1 s")
            else:
                future.set_exception(warm.concurrent.futures.BrokenExecutor())
            return future

    monkeypatch.setattr(warm.concurrent.futures, "ProcessPoolExecutor", Pool)
    todo = [Row("forward", "OLMoE", T, "triton") for T in range(5)]
    assert [row.T for row in warm.warm_all(todo, 2, "cpu", True)] == [3, 4]
