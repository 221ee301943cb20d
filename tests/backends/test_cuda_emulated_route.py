"""route of the CUDA backend, its kernels run by csrc/cuda/emulate, against the reference: equal to the last integer."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_kernels
from moe_kernels.testing import random_indices


def check(indices: Tensor, E: int) -> None:
    got = moe_kernels.route(indices, E, backend="cuda")
    want = moe_kernels.route(indices, E, backend="reference")
    for name in want._fields:
        assert torch.equal(getattr(got, name), getattr(want, name)), name


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("routing", ["uniform", "sentinels", "one", "same"])
@pytest.mark.parametrize(
    ("T", "E", "K"),
    [(0, 8, 2), (1, 1, 1), (1, 8, 8), (3, 60, 8), (63, 8, 2), (300, 64, 8), (63, 128, 1), (63, 256, 8), (5, 1024, 8)]
    + [(7, 513, 3), (640, 60, 8), (700, 600, 7)],
    ids=lambda n: str(n),
)
def test_route(emulated: Any, T: int, E: int, K: int, routing: str, dtype: torch.dtype) -> None:
    if routing in ("uniform", "sentinels"):
        indices = random_indices(T, E, K, routing)
    elif routing == "one":
        indices = torch.full((T, K), E - 1)
    else:
        indices = torch.arange(K).expand(T, K) % (E + 1)
    check(indices.to(dtype), E)


def test_no_slot(emulated: Any) -> None:
    check(torch.zeros(3, 0, dtype=torch.int32), 4)
    check(torch.full((70, 2), 2**31 + 5, dtype=torch.int64), 4)


def test_strided_indices(emulated: Any) -> None:
    check(random_indices(40, 16, 8)[:, ::2], 16)


def test_all_orders_of_threads(emulated: Any) -> None:
    set_order = ctypes.CDLL(emulated.__file__).moe_emulate_set_order
    try:
        for order in (1, 2):
            set_order(order, ctypes.c_uint64(3))
            for T, E, K in ((63, 8, 2), (650, 60, 8), (600, 520, 7)):
                check(random_indices(T, E, K, "sentinels"), E)
    finally:
        set_order(0, ctypes.c_uint64(0))
