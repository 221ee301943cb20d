"""Triton's gating against the reference: infinities, NaN, ties, groups of any size, several tiles a program."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels.backends.reference.topk_gating import (  # noqa: E402
    topk_gating_backward_reference,
    topk_gating_reference,
)
from moe_kernels.backends.triton import topk_gating  # noqa: E402
from moe_kernels.testing import assert_close  # noqa: E402

inf, nan = float("inf"), float("nan")
NAMES = ("weights", "indices", "counts", "mean probability", "z", "entropy")
GRADS = ("grad_weights", "grad_mean_probability", "grad_z", "grad_entropy")
OPTIONS = [(score, renormalize) for score in ("softmax", "sigmoid") for renormalize in (False, True)]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def _logits(T, E, special, seed=0):
    """Quarters, so that there are ties and sums are exact; `special` is how often a value is not finite."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-12, 13, (T, E), generator=generator) / 4
    which = torch.rand(T, E, generator=generator)
    for place, value in enumerate((-inf, inf, nan)):
        logits[(which >= place * special) & (which < (place + 1) * special)] = value
    logits[T // 2] = -inf
    return logits.to(DEVICE)


def _equal_infinities(got, want):
    """Compare as `assert_close` does; infinities must be the same."""
    infinite = torch.isinf(want)
    assert torch.equal(got[infinite], want[infinite])
    assert_close(torch.where(infinite, 0, got), torch.where(infinite, 0, want))


def check(logits, k, score, renormalize, *, bias=None, groups=(1, 1), scale=1.5, noise=None, mask=None):
    got = topk_gating.topk_gating_triton(logits, k, score, bias, *groups, renormalize, scale, noise, mask)
    want = topk_gating_reference(logits, k, score, bias, *groups, renormalize, scale, noise, mask)
    assert torch.equal(got[1], want[1])
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape, name
        if name not in ("indices", "weights"):
            _equal_infinities(a, b)
    _equal_infinities(got[0], want[0])

    generator = torch.Generator().manual_seed(1)
    g = [torch.randn(want[i].shape, generator=generator).to(DEVICE) for i in (0, 3, 4, 5)]
    last = (logits, noise, mask, want[0], want[1], score, renormalize, scale)
    got_grad = topk_gating.topk_gating_backward_triton(*g, *last)
    want_grad = topk_gating_backward_reference(*g, *last)
    assert got_grad.dtype == logits.dtype
    _equal_infinities(got_grad, want_grad)


@pytest.mark.parametrize("score,renormalize", OPTIONS)
@pytest.mark.parametrize("special", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("E,k", [(1, 1), (5, 5), (24, 4)])
def test_ties_infinities_and_nan(E, k, special, score, renormalize):
    check(_logits(70, E, special), k, score, renormalize)


@pytest.mark.parametrize("score,renormalize", OPTIONS)
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("E,groups,k", [(24, (3, 2), 7), (20, (4, 1), 5), (12, (12, 5), 5), (40, (5, 5), 9)], ids=str)
def test_groups_of_any_size(E, groups, k, biased, score, renormalize):
    # Far apart, so that a rounding of the scores changes no order.
    bias = (torch.arange(E) * 7 % E).to(DEVICE) * 2.0 if biased else None
    for special in (0.0, 0.1):
        check(_logits(30, E, special), k, score, renormalize, bias=bias, groups=groups)


@pytest.mark.parametrize("score,renormalize", OPTIONS)
def test_several_tiles_a_program(score, renormalize, monkeypatch):
    monkeypatch.setattr(topk_gating, "PROGRAMS", 3)
    monkeypatch.setattr(topk_gating, "TOKENS", 8)
    monkeypatch.setattr(topk_gating, "ROWS", 2)
    mask = torch.rand(70, generator=torch.Generator().manual_seed(3)).to(DEVICE) < 0.5
    noise = (torch.randint(-8, 9, (70, 33), generator=torch.Generator().manual_seed(4)) / 8).to(DEVICE)
    for other in (torch.float32, torch.float64, torch.float16):
        check(_logits(70, 33, 0.0)[:, :33], 6, score, renormalize, noise=noise.to(other), mask=mask)


def test_tokens_do_not_depend_on_their_number():
    logits = torch.randn(300, 24, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    options = (3, "softmax", None, 1, 1, True, 1.0, None, None)
    few, many = (topk_gating.topk_gating_triton(x, *options)[0] for x in (logits[:1], logits))
    assert torch.equal(few, many[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rows_with_gaps(dtype):
    wide = _logits(9, 21, 0.0).to(dtype)
    check(wide[:, 2:15], 3, "softmax", True)
    check(wide[:, ::2], 3, "sigmoid", False)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_scale_zero(score):
    check(_logits(9, 8, 0.0), 2, score, True, scale=0.0)


def test_no_tokens_and_none_that_count():
    check(_logits(1, 8, 0.0)[:0], 2, "softmax", False)
    check(torch.randn(5, 8).to(DEVICE), 2, "softmax", True, mask=torch.zeros(5, dtype=torch.bool, device=DEVICE))


def test_all_of_many_experts():
    check(_logits(3, 300, 0.0), 300, "softmax", True)
