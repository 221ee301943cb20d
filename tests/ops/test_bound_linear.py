"""A linear layer whose weights are looked up once, against the ops that it calls."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import grouped_lora_, grouped_mm
from moe_kernels.native import native
from moe_kernels.ops.bound_linear import BoundLinear, can_bind
from moe_kernels.ops.prepared_lora import PreparedLora

N, H, O, G, R = 12, 24, 40, 5, 8
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.skipif(native()[0] is None, reason="the native core is not built")


@pytest.fixture(autouse=True)
def on_the_device():
    """Without the device that the other tests of ops set: that is a mode, which `can_bind` refuses."""
    with torch.no_grad():
        yield


def tensors(dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(N, H).to(dtype), torch.randn(O, H).to(dtype), torch.randn(O).to(dtype)
    A, B = torch.randn(G, R, H).to(dtype), torch.randn(G, O, R).to(dtype)
    return x, weight, bias, A, B, torch.rand(G)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("ranked", [False, True])
def test_the_same_bits(dtype, biased, ranked):
    x, weight, bias, A, B, scaling = tensors(dtype)
    bias = bias if biased else None
    ranks = torch.tensor([1, 8, 0, 3, 5], dtype=torch.int32) if ranked else None
    first, second = (torch.randint(0, G + 1, (N,), dtype=torch.int32) for _ in range(2))
    factors = torch.rand(N)
    lora = [(PreparedLora(A, B, g, scaling, ranks=ranks), f) for g, f in ((first, None), (second, factors))]
    found = BoundLinear(weight, bias, N, lora)(x)
    wanted = grouped_mm(
        x, weight[None], torch.tensor([0, N], dtype=torch.int32), bias=None if bias is None else bias[None]
    )
    grouped_lora_(wanted, x, A, B, first, scaling, ranks=ranks)
    grouped_lora_(wanted, x * factors[:, None].to(dtype), A, B, second, scaling, ranks=ranks)
    assert torch.equal(found, wanted)
    assert torch.equal(BoundLinear(weight, bias, N, lora)(x.T.contiguous().T), wanted)


def test_weights_that_change_in_place_are_seen():
    x, weight, bias, *_ = tensors(torch.float32)
    layer = BoundLinear(weight, bias, N)
    weight.mul_(2.0)
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, weight, bias), atol=1e-4)


def test_what_it_needs_stays_alive():
    x, weight, bias, A, B, scaling = tensors(torch.bfloat16)
    layer = BoundLinear(weight, bias, N, [(PreparedLora(A, B, torch.arange(N) % G, scaling.double().float()), None)])
    wanted = layer(x)
    del weight, bias, A, B, scaling
    rubbish = [torch.full((size,), 7.0) for size in (H * O, O, G * R * H, G * O * R, N, G) for _ in range(20)]
    assert torch.equal(layer(x), wanted) and rubbish


def test_memory_that_a_parameter_gives_up_stays_readable():
    x, weight, bias, A, B, scaling = tensors(torch.float32)
    parameters = [torch.nn.Parameter(t, requires_grad=False) for t in (weight, bias, A, B)]
    lora = PreparedLora(*parameters[2:], torch.arange(N) % G, scaling)
    layer = BoundLinear(*parameters[:2], N, [(lora, None)])
    wanted = layer(x)
    del weight, bias, A, B
    for parameter in parameters:
        parameter.data = torch.zeros_like(parameter)
    rubbish = [torch.full((size,), 7.0) for size in (H * O, O, G * R * H, G * O * R) for _ in range(20)]
    assert torch.equal(layer(x), wanted) and rubbish


def test_refuses_other_sizes():
    x, weight, bias, A, B, scaling = tensors(torch.float32)
    layer = BoundLinear(weight, bias, N)
    for wrong in (x[1:], x[:, 1:], x.bfloat16()):
        with pytest.raises(ValueError, match=r"x: expected \(12, 24\) torch.float32"):
            layer(wrong)
    with pytest.raises(ValueError, match="adapters: expected"):
        BoundLinear(weight, bias, N, [(PreparedLora(A, B, torch.zeros(N - 1).int(), scaling), None)])


@pytest.mark.parametrize("case", ["float64", "other dtype", "strided", "gradients", "mode", "autocast", "forced"])
def test_what_cannot_be_bound(case, monkeypatch):
    _, weight, bias, *_ = tensors(torch.float32)
    assert can_bind(weight, bias)
    if case == "mode":
        with torch.device("meta"):
            assert not can_bind(weight, bias)
        return
    if case == "gradients":
        with torch.enable_grad():
            assert not can_bind(weight, bias)
        return
    if case == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not can_bind(weight, bias)
        return
    if case == "forced":
        monkeypatch.setenv("MOE_KERNELS_BACKEND", "reference")
    changed = {
        "float64": (weight.double(), bias.double()), "other dtype": (weight, bias.bfloat16()),
        "strided": (weight.T, bias), "forced": (weight, bias),
    }  # fmt: skip
    assert not can_bind(*changed[case])
