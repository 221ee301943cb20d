"""On CPU a token's bits depend on its own row, routing and the weights only."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import MoELayer, fused_experts, grouped_mm, route, topk_gating
from moe_kernels.registry import why_not
from moe_kernels.testing import expert_inputs

pytestmark = pytest.mark.skipif(
    why_not("cpu", "fused_experts", torch.empty(0)) is not None, reason="the native core is not built"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def on_the_device():
    """These are promises of the CPU."""


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _experts(inputs, rows=slice(None)):
    x, indices, weights, gate_up, down, *_ = inputs
    return fused_experts(x[rows], indices[rows], weights[rows], gate_up, down)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H,I", [(33, 19), (300, 70)])
def test_a_token_alone_and_in_any_batch(dtype, H, I, threads):
    inputs = expert_inputs(200, 8, 2, H, I).to(dtype)
    whole = _experts(inputs)
    for rows in (slice(0, 1), slice(199, 200), slice(3, 20), slice(0, 64), slice(100, 200)):
        assert torch.equal(_experts(inputs, rows), whole[rows])
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(_experts(inputs, shuffled), whole[shuffled])


def test_results_too_large_for_the_caches():
    # On AMX more than 8 MiB of them are written past the caches, by whole chunks of rows; a few rows are not.
    inputs = expert_inputs(1100, 4, 2, 2048, 96).to(torch.bfloat16)
    whole = _experts(inputs)
    for rows in (slice(0, 40), slice(1000, 1100)):
        assert torch.equal(_experts(inputs, rows), whole[rows])


def test_an_activation_too_large_for_a_cache():
    # On AMX the down-projection takes it a few columns at a time: two experts of 300 rows each, as many as threads.
    inputs = expert_inputs(300, 2, 2, 64, 4096).to(torch.bfloat16)
    whole = _experts(inputs)
    for rows in (slice(0, 3), slice(90, 130), slice(200, 300)):
        assert torch.equal(_experts(inputs, rows), whole[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_expert_order_does_not_matter(dtype):
    inputs = expert_inputs(63, 8, 2, 65, 33).to(dtype)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order).int()
    moved = inputs._replace(
        indices=place[inputs.indices.long()], gate_up=inputs.gate_up[order], down=inputs.down[order]
    )
    assert torch.equal(_experts(moved), _experts(inputs))


def _training_step(dtype):
    inputs = expert_inputs(100, 8, 2, 65, 33, bias=True).to(dtype)
    leaves = [t.requires_grad_() if t.is_floating_point() else t for t in inputs]
    fused_experts(*leaves[:5], gate_up_bias=leaves[5], down_bias=leaves[6]).float().square().sum().backward()
    return [t.grad for t in leaves if t.is_floating_point()]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_do_not_depend_on_the_threads(dtype, threads):
    torch.set_num_threads(1)
    alone = _training_step(dtype)
    torch.set_num_threads(threads)
    for a, b in zip(alone, _training_step(dtype), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gating_and_grouped_mm(dtype, threads):
    torch.manual_seed(0)
    logits, w = torch.randn(200, 64).to(dtype), torch.randn(1, 64, 33).to(dtype)
    x = torch.randn(200, 33).to(dtype)
    whole = topk_gating(logits, 6, renormalize=True)
    ends = torch.tensor([0, 200], dtype=torch.int32)
    product = grouped_mm(x, w, ends)
    for start, end in ((0, 1), (77, 140)):
        part = topk_gating(logits[start:end], 6, renormalize=True)
        assert torch.equal(part.weights, whole.weights[start:end])
        assert torch.equal(part.indices, whole.indices[start:end])
        few = torch.tensor([0, end - start], dtype=torch.int32)
        assert torch.equal(grouped_mm(x[start:end], w, few), product[start:end])
    assert torch.equal(topk_gating(logits, 6).mean_probability, topk_gating(logits, 6).mean_probability)


@pytest.mark.parametrize("options", [{}, {"score": "sigmoid", "shared_intermediate_size": 24}], ids=["plain", "shared"])
def test_layer(options, threads):
    torch.manual_seed(0)
    layer = MoELayer(65, 33, 8, 2, **options)
    x = torch.randn(100, 65)
    with torch.no_grad():
        whole = layer(x)
        for rows in (slice(0, 1), slice(50, 100)):
            assert torch.equal(layer(x[rows]), whole[rows])


def test_route_is_the_same_for_any_thread_count(threads):
    indices = expert_inputs(5000, 64, 8, 2, 2).indices
    one = route(indices, 64)
    torch.set_num_threads(1)
    for a, b in zip(one, route(indices, 64), strict=True):
        assert torch.equal(a, b)
