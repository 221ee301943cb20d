"""route of the CUDA backend against the reference: equal to the last integer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import moe_kernels
from moe_kernels.backends.cuda import launch
from moe_kernels.testing import random_indices

on_gpu = pytest.mark.skipif(launch.module_problem() is not None, reason=str(launch.module_problem()))


def check(device: str, indices: Tensor, E: int) -> None:
    got = moe_kernels.route(indices.to(device), E, backend="cuda")
    want = moe_kernels.route(indices, E, backend="reference")
    for name in want._fields:
        assert torch.equal(getattr(got, name).cpu(), getattr(want, name)), name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("routing", ["uniform", "sentinels", "one", "same"])
@pytest.mark.parametrize(
    ("T", "E", "K"),
    [(0, 8, 2), (1, 1, 1), (1, 8, 8), (3, 60, 8), (63, 8, 2), (300, 64, 8), (63, 128, 1), (63, 256, 8), (5, 1024, 8)]
    + [(7, 513, 3), (640, 60, 8), (700, 600, 7)],
    ids=lambda n: str(n),
)
def test_route(device: str, T: int, E: int, K: int, routing: str, dtype: torch.dtype) -> None:
    if routing in ("uniform", "sentinels"):
        indices = random_indices(T, E, K, routing)
    elif routing == "one":
        indices = torch.full((T, K), E - 1)
    else:
        indices = torch.arange(K).expand(T, K) % (E + 1)
    check(device, indices.to(dtype), E)


def test_no_slot(device: str) -> None:
    check(device, torch.zeros(3, 0, dtype=torch.int32), 4)
    check(device, torch.full((70, 2), 2**31 + 5, dtype=torch.int64), 4)


def test_strided_indices(device: str) -> None:
    check(device, random_indices(40, 16, 8)[:, ::2], 16)


def test_all_orders_of_threads(set_order: Callable[[int], None]) -> None:
    for order in (1, 2):
        set_order(order)
        for T, E, K in ((63, 8, 2), (650, 60, 8), (600, 520, 7)):
            check("cpu", random_indices(T, E, K, "sentinels"), E)


def test_several_rounds_a_tile(device: str) -> None:
    check(device, random_indices(53000, 8, 6, "sentinels"), 8)


@on_gpu
@pytest.mark.parametrize(("T", "E", "K"), [(4096, 64, 8), (32768, 256, 8), (100001, 128, 3)], ids=str)
def test_many_slots(T: int, E: int, K: int) -> None:
    check("cuda", random_indices(T, E, K, "sentinels"), E)


@on_gpu
def test_inside_a_cuda_graph() -> None:
    indices = random_indices(3000, 64, 8).cuda()
    moe_kernels.route(indices, 64, backend="cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moe_kernels.route(indices, 64, backend="cuda")
    indices.copy_(random_indices(3000, 64, 8, "sentinels"))
    graph.replay()
    again = moe_kernels.route(indices, 64, backend="cuda")
    assert all(torch.equal(a, b) for a, b in zip(captured, again, strict=True))
