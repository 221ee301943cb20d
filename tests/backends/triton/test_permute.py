"""Triton's permute and unpermute where a row takes several tiles, strides have gaps, and dtypes differ."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels.backends.reference.permute import permute_reference  # noqa: E402
from moe_kernels.backends.reference.route import route_reference  # noqa: E402
from moe_kernels.backends.reference.unpermute import (  # noqa: E402
    unpermute_backward_reference,
    unpermute_reference,
)
from moe_kernels.backends.triton.permute import permute_triton  # noqa: E402
from moe_kernels.backends.triton.unpermute import unpermute_backward_triton, unpermute_triton  # noqa: E402
from moe_kernels.testing import assert_close, random_indices  # noqa: E402

T, E, K = 19, 6, 3


@pytest.fixture(params=[1, 100, 2048, 4100])
def H(request):
    return request.param


@pytest.fixture
def plan():
    return route_reference(random_indices(T, E, K, "sentinels").to(DEVICE), E)


def _strided(rows, H, dtype=torch.bfloat16):
    """Rows with gaps between them."""
    return torch.randn(rows, H + 5).to(DEVICE, dtype)[:, :H]


def test_permute(H, plan):
    x = _strided(T, H)
    assert torch.equal(permute_triton(x, *plan), permute_reference(x, *plan))


def test_unpermute_into_another_dtype(H, plan):
    rows, weights = _strided(T * K, H, torch.float32), torch.rand(T, K).to(DEVICE)
    want = unpermute_reference(rows, plan[2], weights)
    assert_close(unpermute_triton(rows, plan[2], weights), want)
    got = unpermute_triton(rows, plan[2], weights, dtype=torch.bfloat16)
    assert got.dtype == torch.bfloat16
    assert_close(got, want)


def test_unpermute_ignores_what_no_expert_owns(plan):
    rows, weights = _strided(T * K, 64, torch.float32), torch.rand(T, K).to(DEVICE)
    rows[int(plan[0][-1]) :] = torch.nan
    weights[plan[2] < 0] = torch.nan
    assert torch.isfinite(unpermute_triton(rows, plan[2], weights)).all()
    grads = unpermute_backward_triton(_strided(T, 64, torch.float32), rows, plan[2], weights)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_unpermute_backward(H, plan, weighted):
    grad, rows = _strided(T, H, torch.float32), _strided(T * K, H, torch.float32)
    weights = torch.rand(T, K).to(DEVICE) if weighted else None
    got = unpermute_backward_triton(grad, rows, plan[2], weights)
    want = unpermute_backward_reference(grad, rows, plan[2], weights)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        assert_close(a, b)


@pytest.mark.parametrize("tokens,width", [(0, 8), (4, 0)])
def test_nothing_to_move(tokens, width):
    offsets, row_token, slot_row = route_reference(torch.zeros(tokens, 2, dtype=torch.int32, device=DEVICE), 1)
    x = torch.randn(tokens, width).to(DEVICE)
    assert permute_triton(x, offsets, row_token, slot_row).shape == (2 * tokens, width)
    rows, weights = torch.randn(2 * tokens, width).to(DEVICE), torch.rand(tokens, 2).to(DEVICE)
    assert unpermute_triton(rows, slot_row, weights).shape == (tokens, width)
    grad_rows, grad_weights = unpermute_backward_triton(x, rows, slot_row, weights)
    assert grad_rows.shape == rows.shape and torch.equal(grad_weights, torch.zeros_like(weights))
