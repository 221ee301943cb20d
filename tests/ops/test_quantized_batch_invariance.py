"""With quantized weights too, a token's bits on CPU depend on its own row, routing and the weights only."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import fused_experts, grouped_mm
from moe_kernels.quantized_weights import quantize_int8, quantize_nf4
from moe_kernels.registry import why_not
from moe_kernels.testing import expert_inputs

REASON = why_not("cpu", "fused_experts_quantized", torch.empty(0))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
FORMATS = pytest.mark.parametrize("format", ["nf4", "int8", "int8-dynamic"])
PARTS = (slice(0, 1), slice(199, 200), slice(3, 20), slice(0, 64), slice(100, 200))


@pytest.fixture(autouse=True)
def on_the_device():
    """These are promises of the CPU."""


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _quantize(w, format):
    return quantize_nf4(w) if format == "nf4" else quantize_int8(w)


@DTYPES
@FORMATS
@pytest.mark.parametrize("H,I", [(64, 128), (576, 320)])
def test_a_token_alone_and_in_any_batch(dtype, format, H, I, threads):
    inputs = expert_inputs(200, 8, 2, H, I)
    gate_up, down = _quantize(inputs.gate_up, format), _quantize(inputs.down, format)
    x, indices, weights, *_ = inputs.to(dtype)

    def call(rows):
        return fused_experts(x[rows], indices[rows], weights[rows], gate_up, down, dynamic=format == "int8-dynamic")

    whole = call(slice(None))
    for rows in PARTS:
        assert torch.equal(call(rows), whole[rows])
    shuffled = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(call(shuffled), whole[shuffled])


@DTYPES
@FORMATS
def test_grouped_mm(dtype, format, threads):
    torch.manual_seed(0)
    x, w = torch.randn(200, 192).to(dtype), _quantize(torch.randn(1, 33, 192), format)

    def call(rows):
        ends = torch.tensor([0, rows.shape[0]], dtype=torch.int32)
        return grouped_mm(rows, w, ends, dynamic=format == "int8-dynamic")

    whole = call(x)
    for rows in PARTS:
        assert torch.equal(call(x[rows]), whole[rows])


@DTYPES
@FORMATS
def test_gradients_do_not_depend_on_the_threads(dtype, format, threads):
    inputs = expert_inputs(100, 8, 2, 64, 128, bias=True)
    gate_up, down = _quantize(inputs.gate_up, format), _quantize(inputs.down, format)
    cast, grads = inputs.to(dtype), []
    for count in (1, threads):
        torch.set_num_threads(count)
        x, weights, up_bias, down_bias = (
            value.clone().requires_grad_() for value in (cast.x, cast.weights, cast.gate_up_bias, cast.down_bias)
        )
        options = {"gate_up_bias": up_bias, "down_bias": down_bias, "dynamic": format == "int8-dynamic"}
        fused_experts(x, cast.indices, weights, gate_up, down, **options).float().square().sum().backward()
        grads.append([leaf.grad for leaf in (x, weights, up_bias, down_bias)])
    for one, many in zip(*grads, strict=True):
        assert torch.equal(one, many)
