"""route: offsets, row_token and slot_row against a sort."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import route
from moe_kernels.testing import random_indices


@pytest.mark.parametrize("routing", ["uniform", "skewed", "single", "sentinels"])
def test_route(T, E, K, routing, backend):
    indices = random_indices(T, E, K, routing)
    plan = route(indices, E, backend=backend)
    flat = indices.reshape(-1).long()
    order = torch.sort(flat.clamp(max=E), stable=True).indices
    valid = int((flat < E).sum())

    counts = torch.bincount(flat[flat < E], minlength=E)
    assert plan.offsets.tolist() == [0, *counts.cumsum(0).tolist()]
    assert torch.equal(plan.row_token[:valid], (order[:valid] // K).int())
    assert not plan.row_token[valid:].any()
    expected = torch.full((T * K,), -1, dtype=torch.int32)
    expected[order[:valid]] = torch.arange(valid, dtype=torch.int32)
    assert torch.equal(plan.slot_row, expected.view(T, K))
    assert all(value.dtype == torch.int32 for value in plan)


def test_route_takes_int64(backend):
    indices = random_indices(63, 8, 2)
    for a, b in zip(route(indices, 8, backend=backend), route(indices.long(), 8, backend=backend), strict=True):
        assert torch.equal(a, b)


def test_route_huge_sentinel(backend):
    indices = torch.tensor([[0, 2**31 - 1], [1, 2]], dtype=torch.int32)
    assert route(indices, 2, backend=backend).slot_row.tolist() == [[0, -1], [1, -1]]
