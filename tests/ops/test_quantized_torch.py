"""What PyTorch asks of the ops with quantized weights: their registration, one graph, shapes without values."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import fused_experts, grouped_mm, route
from moe_kernels.testing import expert_inputs, random_indices

from .quantized_formats import FORMATS, QUANTIZE, trainable

OPS = torch.ops.moe_kernels


def _opcheck(op, *args):
    torch.library.opcheck(op.default, args)


@FORMATS
def test_opcheck_fused_experts(kind, engine):
    inputs = expert_inputs(5, 4, 2, 64, 64, bias=True, routing="sentinels").to(torch.float32)
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)
    x, indices, weights, _, _, up_bias, down_bias = (trainable(value) for value in inputs)
    matrices = (gate_up.data, gate_up.scales, down.data, down.scales)
    options = (gate_up.format, "silu", None, False, kind == "int8")
    _opcheck(
        OPS.fused_experts_quantized, x, indices, weights, *matrices, up_bias, down_bias, *options, True, engine, None
    )
    x, weights, up_bias, down_bias = (value.detach() for value in (x, weights, up_bias, down_bias))
    plain = (x, indices, weights, *matrices, up_bias, down_bias, *options)
    _opcheck(OPS.fused_experts_quantized, *plain, False, engine, None)
    _, pre, *plan = OPS.fused_experts_quantized(*plain, True, engine, None)
    for need in ([True] * 4, [False, True, False, False]):
        args = (torch.randn(5, 64), x, weights, *matrices, up_bias, down_bias, pre, *plan, *options[:4], need, engine)
        _opcheck(OPS.fused_experts_quantized_backward, *args)


@FORMATS
def test_opcheck_grouped_mm(kind, engine):
    plan = route(random_indices(7, 4, 2, "sentinels"), 4)
    w = QUANTIZE[kind](torch.randn(4, 3, 64))
    x, bias, scale, base = (torch.randn(*s, requires_grad=True) for s in ((7, 64), (4, 3), (14,), (7, 3)))
    end = (w.format, kind == "int8", engine, None)
    given = (plan.offsets, plan.row_token, bias, scale, plan.slot_row, base)
    _opcheck(OPS.grouped_mm_quantized, x, w.data, w.scales, *given, *end)
    rows = torch.randn(14, 64, requires_grad=True)
    _opcheck(OPS.grouped_mm_quantized, rows, w.data, w.scales, plan.offsets, None, None, None, None, None, *end)
    rest = (plan.offsets, plan.row_token, bias.detach(), scale.detach(), plan.slot_row)
    for need in ([True, True, True], [False, True, False]):
        args = (torch.randn(7, 3), x.detach(), w.data, w.scales, *rest, w.format, need, engine)
        _opcheck(OPS.grouped_mm_quantized_backward, *args)


@FORMATS
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_fullgraph(kind, compiler):
    inputs = expert_inputs(9, 4, 2, 64, 64).to(torch.float32)
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)

    def chain(x, indices, weights):
        plan = route(indices, 4)
        rows = grouped_mm(x, down, plan.offsets, row_token=plan.row_token, slot_row=plan.slot_row)
        return rows + fused_experts(x, indices, weights, gate_up, down)

    torch.compiler.reset()
    compiled = torch.compile(chain, fullgraph=True, backend=compiler)
    grads = []
    for call in (chain, compiled):
        x = trainable(inputs.x)
        call(x, inputs.indices, inputs.weights).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@FORMATS
def test_dequantizes_under_tracing(kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    weight = QUANTIZE[kind](torch.randn(2, 3, 64))
    real = weight.dequantize()
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        fake = type(weight)(**{name: mode.from_tensor(value) for name, value in weight.tensors().items()})
        assert fake.dequantize().shape == (2, 3, 64)
    assert torch.equal(weight.dequantize(), real)
