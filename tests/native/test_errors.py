"""What the native core refuses: it may be called with anything, and must never read outside its arguments."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import grouped_mm, permute, unpermute
from moe_kernels.backends import cpu
from moe_kernels.native import core, native, view
from moe_kernels.ops.route import RoutingPlan

module, reason = native()
pytestmark = pytest.mark.skipif(module is None, reason=str(reason))


def _int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (_int32(0, 2, 9), "offsets: expected values rising from 0 to at most N=4, got 9"),
        (_int32(0, 3, 2), "offsets: expected values rising from 0 to at most N=4, got 2"),
        (_int32(1, 3, 4), "offsets: expected values rising from 0 to at most N=4, got 1"),
    ],
)
def test_offsets(offsets, message):
    with pytest.raises(RuntimeError, match=f"grouped_mm: {message}"):
        grouped_mm(torch.zeros(4, 3), torch.zeros(2, 5, 3), offsets, backend="cpu")


def test_row_token():
    plan = RoutingPlan(_int32(0, 2), _int32(0, 7), _int32(0, 1)[:, None])
    with pytest.raises(RuntimeError, match="permute: row_token: expected tokens below T=2, got 7"):
        permute(torch.zeros(2, 3), plan, backend="cpu")


def test_slot_row():
    plan = RoutingPlan(_int32(0, 2), _int32(0, 1), _int32(0, 2)[:, None])
    with pytest.raises(RuntimeError, match="unpermute: slot_row: expected -1 or rows below N=2, got 2"):
        unpermute(torch.zeros(2, 3), plan, backend="cpu")


def test_shape():
    x, out = torch.zeros(4, 3), torch.zeros(4, 6)
    w, offsets = torch.zeros(1, 5, 3), _int32(0, 4)
    with pytest.raises(RuntimeError, match=r"grouped_mm: out: expected contiguous .*\(4, 5\), got float32 \(4, 6\)"):
        core().grouped_mm(
            view(x), view(w), view(offsets), False, None, None, None, None, None, view(out), torch.get_num_threads()
        )


def test_dtype():
    offsets = torch.zeros(2, dtype=torch.int64)
    x, w, out = torch.zeros(4, 3), torch.zeros(1, 5, 3), torch.zeros(4, 5)
    with pytest.raises(RuntimeError, match=r"offsets: expected contiguous int32 \(2\), got int64 \(2\)"):
        core().grouped_mm(view(x), view(w), view(offsets), False, None, None, None, None, None, view(out), 1)


def test_view():
    with pytest.raises(RuntimeError, match="View: unknown dtype code 17"):
        core().View(0, (1,), (1,), 17)
    with pytest.raises(RuntimeError, match="View: expected as many strides as sizes, at most 4, got 2 sizes and 1"):
        core().View(0, (1, 1), (1,), 0)
    with pytest.raises(TypeError):
        core().View(0, ("a",), (1,), 0)


def test_supports():
    assert cpu.supports("route", torch.zeros(1)) is None
    assert cpu.supports("route", torch.zeros(1, dtype=torch.float64)) == "it has no kernels for float64"
    assert cpu.supports("route", torch.zeros(1, device="meta")) == "it serves CPU tensors, not meta"
