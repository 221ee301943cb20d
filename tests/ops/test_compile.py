"""PyTorch's own checks of operators, and torch.compile without a graph break."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import MoELayer, fused_experts, grouped_lora, grouped_mm, permute, route, topk_gating, unpermute
from moe_kernels.testing import expert_inputs, random_indices

OPS = torch.ops.moe_kernels


def _grad(*shape):
    return torch.randn(*shape, requires_grad=True)


def _opcheck(op, *args):
    torch.library.opcheck(op.default, args)


def test_opcheck_topk_gating(backend):
    bias, mask = torch.randn(8), torch.rand(7) < 0.5
    _opcheck(OPS.topk_gating, _grad(7, 8), 2, "softmax", None, 1, 1, False, 1.0, None, None, backend)
    _opcheck(OPS.topk_gating, _grad(7, 8), 3, "sigmoid", bias, 4, 2, True, 2.5, torch.randn(7, 8), mask, backend)
    got = topk_gating(torch.randn(7, 8), 2)
    grads = (torch.randn(7, 2), torch.randn(8), torch.randn(()), torch.randn(()))
    rest = (torch.randn(7, 8), None, None, got.weights, got.indices, "softmax", True, 1.0, backend)
    _opcheck(OPS.topk_gating_backward, *grads, *rest)


def test_opcheck_route(backend):
    _opcheck(OPS.route, random_indices(7, 8, 2, "sentinels"), 8, backend)


def test_opcheck_permute_and_unpermute(backend):
    plan = route(random_indices(7, 8, 2, "sentinels"), 8)
    _opcheck(OPS.permute, _grad(7, 5), *plan, backend)
    _opcheck(OPS.unpermute, _grad(14, 5), plan.slot_row, None, backend)
    _opcheck(OPS.unpermute, _grad(14, 5), plan.slot_row, _grad(7, 2), backend)
    _opcheck(OPS.unpermute_backward, torch.randn(7, 5), torch.randn(14, 5), plan.slot_row, torch.rand(7, 2), backend)


def test_opcheck_grouped_mm(backend):
    plan = route(random_indices(7, 8, 2, "sentinels"), 8)
    rest = (plan.row_token, _grad(8, 3), _grad(14), plan.slot_row)
    _opcheck(
        OPS.grouped_mm, _grad(14, 5), _grad(8, 3, 5), plan.offsets, False, None, None, None, None, None, backend, None
    )
    _opcheck(OPS.grouped_mm, _grad(7, 5), _grad(8, 5, 3), plan.offsets, True, *rest, _grad(7, 3), backend, None)
    for need in ((True, True, True, True), (False, True, False, False)):
        args = (torch.randn(7, 3), torch.randn(7, 5), torch.randn(8, 5, 3), plan.offsets, True)
        _opcheck(OPS.grouped_mm_backward, *args, *(t.detach() for t in rest), *need, backend)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_opcheck_fused_experts(backend, bias):
    inputs = expert_inputs(7, 8, 2, 5, 3, bias=bias, routing="sentinels").to(torch.float32)
    leaves = [t.requires_grad_() if t is not None and t.is_floating_point() else t for t in inputs]
    _opcheck(OPS.fused_experts, *leaves, "silu", None, False, False, True, backend, None)
    plain = [None if t is None else t.detach() for t in leaves]
    _opcheck(OPS.fused_experts, *plain, "silu", None, False, False, False, backend, None)
    _, pre, *plan = OPS.fused_experts(*plain, "silu", None, False, False, True, backend, None)
    x, _, *weights = plain
    for need in ([True] * 4 + [bias] * 2, [False, False, True, False, False, False]):
        args = (torch.randn(7, 5), x, *weights, pre, *plan, "silu", None, False, False, need, backend)
        _opcheck(OPS.fused_experts_backward, *args)


def _chain(x, logits, up, down):
    """Every public op once."""
    gating = topk_gating(logits, 2, renormalize=True)
    plan = route(gating.indices, logits.shape[1])
    rows = grouped_mm(permute(x, plan), up, plan.offsets)
    rows = grouped_mm(torch.relu(rows), down, plan.offsets)
    out = unpermute(rows, plan, gating.weights) + grouped_lora(x, up, down, gating.indices[:, 0], 0.5)
    return out + fused_experts(x, gating.indices, gating.weights, up, down, activation="relu"), gating.z


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_fullgraph(compiler):
    torch.manual_seed(0)
    torch.compiler.reset()
    compiled = torch.compile(_chain, fullgraph=True, backend=compiler)
    for T in (7, 12, 31):
        leaves = [_grad(T, 16), _grad(T, 8), _grad(8, 12, 16), _grad(8, 16, 12)]
        copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        for call, given in ((_chain, leaves), (compiled, copies)):
            out, z = call(*given)
            (out.square().sum() + z).backward()
        for mine, theirs in zip(leaves, copies, strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("options", [{}, {"score": "sigmoid", "capacity_factor": 1.0, "shared_intermediate_size": 8}])
def test_layer_fullgraph(options):
    torch.manual_seed(0)
    torch.compiler.reset()
    layer = MoELayer(16, 24, 8, 2, **options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 5, 16)
    out, router = compiled(x, return_router=True)
    torch.testing.assert_close(out, layer(x))
    (out.sum() + router.load_balance_loss).backward()
    assert layer.gate.weight.grad is not None
