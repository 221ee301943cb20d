"""Both ways of Triton's route, by comparison and by counting, at sizes where they cut the slots differently."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels.backends.reference.route import route_reference  # noqa: E402
from moe_kernels.backends.triton import route  # noqa: E402
from moe_kernels.testing import random_indices  # noqa: E402


def check(indices: torch.Tensor, E: int) -> None:
    indices = indices.to(DEVICE)
    for got, want in zip(route.route_triton(indices, E), route_reference(indices, E), strict=True):
        assert got.dtype == want.dtype and torch.equal(got, want)


@pytest.mark.parametrize("routing", ["uniform", "skewed", "single", "sentinels"])
@pytest.mark.parametrize("T,E,K", [(1, 8, 2), (63, 8, 8), (65, 5, 5), (257, 1, 1), (300, 31, 8), (129, 130, 20)])
def test_counting(T, E, K, routing, monkeypatch):
    monkeypatch.setattr(route, "FEW_SLOTS", -1)
    # Several programs with several blocks each.
    monkeypatch.setattr(route, "PROGRAMS", 3)
    check(random_indices(T, E, K, routing), E)


@pytest.mark.parametrize("E", [1, 33, 500])
def test_comparison_at_its_largest(E):
    generator = torch.Generator().manual_seed(0)
    check(torch.randint(0, E + 3, (256, 8), generator=generator), E)


def test_a_sentinel_beyond_int32(monkeypatch):
    indices = torch.tensor([[2**40, 1], [0, 2**63 - 1], [2**32, 3]])
    check(indices, 3)
    monkeypatch.setattr(route, "FEW_SLOTS", -1)
    check(indices, 3)


def test_no_program_ranks_more_than_the_rest():
    for N in (1, 256, 257, 16384, 32768, 65536, 65537, 262144, 10**7):
        programs, each = route.chunking(N)
        assert (programs - 1) * each * route.RANKED < N <= programs * each * route.RANKED
