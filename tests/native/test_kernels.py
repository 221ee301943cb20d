"""The inner kernels against float64; `test_isa.py` runs this file once for every instruction set of the machine."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import fused_experts, grouped_mm, unpermute
from moe_kernels.ops.route import RoutingPlan
from moe_kernels.registry import why_not
from moe_kernels.testing import assert_close, expert_inputs, naive_experts

pytestmark = pytest.mark.skipif(
    why_not("cpu", "fused_experts", torch.empty(0)) is not None, reason="the native core is not built"
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Column counts around every switch: few columns, one vector, several panels, more than one chunk.
COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 47, 48, 49, 65, 97, 191, 193, 400)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])
@pytest.mark.parametrize("H,O", [(1, 1), (15, 17), (64, 64), (65, 130), (300, 33), (520, 200)])
def test_product(H, O, transposed, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(COUNTS), H, generator=generator).to(dtype)
    w = torch.randn(len(COUNTS), O, H, generator=generator).to(dtype)
    ends = torch.tensor((0, *COUNTS)).cumsum(0).to(torch.int32)
    given = w.transpose(1, 2).contiguous() if transposed else w
    got = grouped_mm(x, given, ends, transposed=transposed, backend="cpu")
    for e, count in enumerate(COUNTS):
        rows = slice(int(ends[e]), int(ends[e + 1]))
        assert_close(got[rows], x[rows].double() @ w[e].double().T, what=f"{count} rows")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("H,O", [(15, 17), (300, 130)])
def test_bits_do_not_depend_on_the_number_of_rows(H, O, dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, H, generator=generator).to(dtype)
    w = torch.randn(1, O, H, generator=generator).to(dtype)
    for weight, transposed in ((w, False), (w.transpose(1, 2).contiguous(), True)):
        whole = grouped_mm(x, weight, torch.tensor([0, 400], dtype=torch.int32), transposed=transposed, backend="cpu")
        for count in COUNTS:
            few = torch.tensor([0, count], dtype=torch.int32)
            part = grouped_mm(x[:count], weight, few, transposed=transposed, backend="cpu")
            assert torch.equal(part, whole[:count]), f"{count} rows"


def test_a_weight_with_gaps_between_its_rows():
    w = torch.randn(3, 40, 100, generator=torch.Generator().manual_seed(0))
    x = torch.randn(30, 33, generator=torch.Generator().manual_seed(1))
    ends = torch.tensor([0, 2, 20, 30], dtype=torch.int32)
    part = w[:, 3:20, 11:44]
    assert torch.equal(grouped_mm(x, part, ends, backend="cpu"), grouped_mm(x, part.contiguous(), ends, backend="cpu"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("T", [3, 40, 500])
def test_expert_gradients(T, dtype):
    inputs = expert_inputs(T, 4, 2, 130, 70, bias=True).to(dtype)
    wide = inputs.to(torch.float64)
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in inputs]
    wide_leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in wide]
    out = fused_experts(*leaves[:5], gate_up_bias=leaves[5], down_bias=leaves[6], backend="cpu")
    want = naive_experts(type(inputs)(*wide_leaves))
    assert_close(out, want)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    terms = float(torch.linalg.vector_norm(grad.double() * want.detach()))
    for name, ours, theirs in zip(inputs._fields, leaves, wide_leaves, strict=True):
        if name != "indices":
            assert_close(ours.grad, theirs.grad, dtype, what=name, scale=terms if name == "weights" else 0.0)


def _activation(x: torch.Tensor, name: str) -> torch.Tensor:
    """f(x) elementwise, by experts whose matrices are the number one."""
    one = torch.ones(1, 1, 1)
    slots = torch.zeros(len(x), 1, dtype=torch.int32)
    return fused_experts(x[:, None], slots, torch.ones(len(x), 1), one, one, activation=name, backend="cpu")[:, 0]


EXACT = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * torch.erfc(-x / 2**0.5),
    "gelu_tanh": lambda x: x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)),
    "relu": torch.relu,
    "relu2": lambda x: torch.relu(x) ** 2,
}


@pytest.mark.parametrize("name", sorted(EXACT))
def test_activation_to_the_last_digits(name):
    # Into the negative tail, as far as float32 has normal numbers.
    low = {"silu": -80.0, "gelu": -12.0, "gelu_tanh": -6.0}.get(name, -100.0)
    x = torch.cat([torch.linspace(low, 100.0, 200_001), torch.logspace(-30, 0, 1000), -torch.logspace(-30, 0, 1000)])
    got, want = _activation(x, name).double(), EXACT[name](x.double())
    error = ((got - want).abs() / want.abs().clamp(min=1e-37)).max()
    # gelu_tanh's tail multiplies the rounding error of its exponent, 25 at the end of this range.
    assert error < (4e-6 if name == "gelu_tanh" else 6e-7), float(error)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_activation_of_what_is_not_a_number(name):
    x = torch.tensor([torch.inf, torch.nan, 0.0, -0.0, 1e38, -1e38, 1e-40])
    got = _activation(x, name)
    assert got[0] == torch.inf
    assert got[1].isnan()
    assert (got[2:4] == 0).all()
    assert got[4] == (torch.inf if name == "relu2" else x[4])
    assert got[5] == 0
    assert got[6].abs() < 1e-39


def test_gpt_oss_gradient_at_and_beyond_the_clamp():
    generator = torch.Generator().manual_seed(0)
    inputs = expert_inputs(64, 1, 1, 8, 32, interleaved=True)
    x = (20 * torch.randn(64, 8, generator=generator)).double()
    inputs = inputs._replace(x=x).to(torch.float32)
    ours = inputs.x.clone().requires_grad_()
    theirs = inputs.x.double().requires_grad_()
    fused_experts(ours, *inputs[1:5], activation="gpt_oss", interleaved=True, backend="cpu").sum().backward()
    wide = inputs.to(torch.float64)._replace(x=theirs)
    naive_experts(wide, activation="gpt_oss", interleaved=True).sum().backward()
    assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_pattern_survives(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    rows = bits.view(dtype).reshape(256, 256)
    plan = RoutingPlan(*(torch.arange(256, dtype=torch.int32)[:, None] for _ in range(3)))
    got = unpermute(rows, plan, backend="cpu")
    # A sum that starts at +0 turns -0 into +0.
    assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(rows + 0.0))
    assert torch.equal(got.isnan(), rows.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-7, 3e4], ids=lambda s: f"x{s:g}")
def test_rounding_is_to_nearest_even(dtype, scale):
    rows = (torch.randn(2000, 100, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    plan = RoutingPlan(*(torch.arange(2000, dtype=torch.int32).view(1000, 2) for _ in range(3)))
    got, want = unpermute(rows, plan, backend="cpu"), (rows[0::2].float() + rows[1::2].float()).to(dtype)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()], want[~want.isnan()])
