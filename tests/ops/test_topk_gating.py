"""topk_gating: choice, weights, statistics and gradients, against torch's softmax and topk."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import topk_gating
from moe_kernels.testing import assert_close

inf, nan = float("inf"), float("nan")


def _oracle(logits, k, score, bias, num_groups, top_groups, renormalize, scale, mask):
    """Return weights, indices, mean probability, z and entropy by autograd-able torch operations."""
    p = torch.softmax(logits, 1)
    scores = p if score == "softmax" else torch.sigmoid(logits)
    choice = scores if bias is None else scores + bias
    choice = choice.detach().clone()
    T, E = logits.shape
    if num_groups > 1:
        grouped = choice.view(T, num_groups, -1)
        best = grouped.topk(min(2, grouped.shape[2]) if bias is not None else 1, 2).values.sum(2)
        kept = torch.zeros_like(best).scatter(1, best.topk(top_groups, 1).indices, 1)
        choice = choice.masked_fill(kept[:, :, None].expand_as(grouped).reshape(T, E) == 0, -inf)
    indices = choice.topk(k, 1).indices
    weights = scores.gather(1, indices)
    if renormalize:
        weights = weights / weights.sum(1, keepdim=True)
    part = p[mask]
    lse = torch.logsumexp(logits[mask], 1)
    count = max(len(part), 1)
    entropy = -(part * part.log()).sum() / count
    return weights * scale, indices, part.sum(0) / count, (lse**2).sum() / count, entropy


def check(logits, backend, dtype, k, score, bias=None, groups=(1, 1), renormalize=False, scale=1.0, mask=None):
    mine = logits.to(dtype).requires_grad_()
    wide = mine.detach().double().requires_grad_()
    got = topk_gating(
        mine,
        k,
        score=score,
        bias=bias,
        num_groups=groups[0],
        top_groups=groups[1],
        renormalize=renormalize,
        scale=scale,
        mask=mask,
        backend=backend,
    )
    seen = torch.ones(len(logits), dtype=torch.bool) if mask is None else mask
    wide_bias = None if bias is None else bias.double()
    want = _oracle(wide, k, score, wide_bias, *groups, renormalize, scale, seen)
    assert torch.equal(got.indices.long(), want[1])
    floats = (got.weights, got.mean_probability, got.z, got.entropy)
    for name, a, b in zip(("weights", "P", "z", "entropy"), floats, (want[0], *want[2:]), strict=True):
        assert a.dtype == torch.float32
        assert_close(a, b, torch.float32, what=name)
    counts = torch.bincount(want[1][seen].reshape(-1), minlength=logits.shape[1])
    assert got.counts.tolist() == counts.tolist()

    torch.manual_seed(1)
    grads = [torch.randn(a.shape) for a in floats]
    sum((a * g).sum() for a, g in zip(floats, grads, strict=True)).backward()
    sum((a * g.double()).sum() for a, g in zip((want[0], *want[2:]), grads, strict=True)).backward()
    assert mine.grad.dtype == dtype
    assert_close(mine.grad, wide.grad, what="logits")


def _logits(T, E, dtype, seed=0):
    """Distinct in every row also after rounding to `dtype`, so that torch.topk has no ties to break."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(T, E, generator=generator, device="cpu").argsort(1)
    return order.to(torch.get_default_device(), torch.float32) / 16 - E / 32


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_topk_gating(T, E, K, backend, dtype, score):
    check(_logits(T, E, dtype), backend, dtype, K, score, renormalize=K % 2 == 0, scale=1.5)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-is", "renormalized"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (8, 3)], ids=str)
def test_variants(score, renormalize, biased, groups, backend, dtype):
    torch.manual_seed(2)
    bias = torch.randn(32) * 0.2 if biased else None
    mask = torch.rand(63) < 0.7
    check(_logits(63, 32, dtype), backend, dtype, 6, score, bias, groups, renormalize, 2.5, mask)


def test_all_masked(backend):
    got = topk_gating(torch.randn(3, 8), 2, mask=torch.zeros(3, dtype=torch.bool), backend=backend)
    assert not got.counts.any() and not got.mean_probability.any() and got.z == 0 and got.entropy == 0


def test_ties_go_to_the_lower_index(backend):
    for score in ("softmax", "sigmoid"):
        got = topk_gating(torch.zeros(3, 64), 8, score=score, backend=backend)
        assert got.indices.tolist() == [list(range(8))] * 3
        biased = topk_gating(torch.zeros(3, 64), 8, score=score, bias=torch.zeros(64), backend=backend)
        assert biased.indices.tolist() == [list(range(8))] * 3
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 1.0]])
    assert topk_gating(logits, 5, backend=backend).indices.tolist() == [[1, 3, 2, 4, 0]]


def test_tied_groups_go_to_the_lower_index(backend):
    got = topk_gating(torch.zeros(2, 8), 2, num_groups=4, top_groups=1, backend=backend)
    assert got.indices.tolist() == [[0, 1]] * 2


def test_nan_row(backend):
    logits = torch.tensor([[0.0, 1.0, nan, 3.0], [0.0, 1.0, 2.0, 3.0], [inf, nan, 0.0, 0.0]])
    for score in ("softmax", "sigmoid"):
        got = topk_gating(logits, 2, score=score, renormalize=True, backend=backend)
        assert got.indices.tolist() == [[0, 1], [3, 2], [0, 1]]
        assert torch.isnan(got.weights[0]).all() and torch.isnan(got.weights[2]).all()
        assert torch.isfinite(got.weights[1]).all()
        assert torch.isnan(got.z) and torch.isnan(got.mean_probability).all()


def test_minus_infinity_is_never_chosen_while_a_finite_one_is_left(backend):
    logits = torch.tensor([[-inf, -200.0, -inf, 100.0], [-inf, -inf, -inf, -300.0], [-inf] * 4])
    for score in ("softmax", "sigmoid"):
        for bias in (None, torch.tensor([5.0, 0.0, 5.0, 0.0])):
            got = topk_gating(logits, 2, score=score, bias=bias, backend=backend)
            assert got.indices.tolist() == [[3, 1], [3, 0], [0, 1]]
            assert not torch.isnan(got.weights[:2]).any()
            assert torch.isnan(got.weights[2]).all()


def test_plus_infinity_wins(backend):
    logits = torch.tensor([[0.0, inf, 5.0, inf], [9.0, 0.0, inf, 1.0]])
    for bias in (None, torch.tensor([9.0, 0.0, 0.0, 0.0])):
        got = topk_gating(logits, 2, bias=bias, backend=backend)
        assert got.indices.tolist() == [[1, 3], [2, 0]]
        assert got.weights.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert topk_gating(logits, 2, score="sigmoid", backend=backend).indices.tolist() == [[1, 3], [2, 0]]


def test_large_logits_do_not_overflow(backend):
    got = topk_gating(torch.tensor([[1e4, -1e4, 9e3]]), 2, renormalize=True, backend=backend)
    assert got.indices.tolist() == [[0, 2]] and torch.isfinite(got.weights).all() and torch.isfinite(got.z)


def test_noise_is_added_before_everything(backend):
    logits, noise = torch.randn(63, 8), torch.randn(63, 8)
    noisy = topk_gating(logits, 2, noise=noise, backend=backend)
    for a, b in zip(noisy, topk_gating(logits + noise, 2, backend=backend), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-is", "renormalized"])
def test_gradcheck(score, renormalize):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def call(logits, noise):
        got = topk_gating(logits, 3, score=score, renormalize=renormalize, scale=2.5, noise=noise)
        return got.weights, got.mean_probability, got.z, got.entropy

    assert torch.autograd.gradcheck(call, (logits, noise))
