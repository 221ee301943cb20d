"""permute and unpermute, forward and backward."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import permute, route, unpermute
from moe_kernels.testing import assert_close, random_indices

H = 33


def _data(T, E, K, dtype, routing="sentinels"):
    torch.manual_seed(0)
    indices = random_indices(T, E, K, routing)
    x = torch.randn(T, H, dtype=dtype)
    weights = torch.rand(T, K)
    return x, weights, route(indices, E, backend="reference")


def test_permute(T, E, K, backend, dtype):
    x, _, plan = _data(T, E, K, dtype)
    x.requires_grad_()
    rows = permute(x, plan, backend=backend)
    valid = int(plan.offsets[-1])
    assert torch.equal(rows[:valid], x.detach()[plan.row_token[:valid].long()])
    assert not rows[valid:].any()

    grad = torch.randn(T * K, H).to(dtype)
    rows.backward(grad)
    want = torch.zeros(T, H, dtype=torch.float64)
    want.index_add_(0, plan.row_token[:valid].long(), grad[:valid].double())
    assert_close(x.grad, want)


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_unpermute(T, E, K, backend, dtype, weighted):
    _, weights, plan = _data(T, E, K, dtype)
    rows = torch.randn(T * K, H).to(dtype)
    # Rows without an expert must never be read.
    rows[int(plan.offsets[-1]) :] = torch.nan
    rows.requires_grad_()
    weights.requires_grad_()
    out = unpermute(rows, plan, weights if weighted else None, backend=backend)

    r64 = rows.detach().double().nan_to_num(0.0).requires_grad_()
    w64 = weights.detach().double().requires_grad_()
    slots = plan.slot_row.reshape(-1)
    picked = r64[slots.clamp(min=0).long()] if T else r64
    picked = picked * (slots >= 0)[:, None]
    want = (picked.view(T, K, H) * (w64[:, :, None] if weighted else 1)).sum(1)
    assert_close(out, want)

    grad = torch.randn(T, H).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    assert_close(rows.grad, r64.grad, what="rows")
    if weighted:
        assert_close(weights.grad, w64.grad, dtype, what="weights")


def test_round_trip(backend):
    x, _, plan = _data(63, 8, 2, torch.float32, routing="uniform")
    back = unpermute(permute(x, plan, backend=backend), plan, torch.full((63, 2), 0.5), backend=backend)
    assert torch.equal(back, x)


def test_permute_of_a_view(backend):
    x, _, plan = _data(63, 8, 2, torch.float32)
    wide = torch.randn(63, 2 * H)
    assert torch.equal(permute(wide[:, ::2], plan, backend=backend), permute(wide[:, ::2].contiguous(), plan))
