"""Which calls go past the dispatcher, and that nothing that listens to it is passed over."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from moe_kernels import fused_experts, grouped_lora, grouped_lora_, grouped_mm, permute, route, topk_gating, unpermute
from moe_kernels.ops.direct import direct


@pytest.fixture(autouse=True)
def on_the_device():
    """Without the device that the other tests of ops set: that is a mode, which goes through the op."""


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        return op(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Wrapped(torch.Tensor):
    pass


def taken(*arguments):
    """Name the way that a call takes."""
    return direct(lambda *_: "op", lambda *_: "direct")(*arguments)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_ordinary_tensors_are_direct(mode):
    outside = torch.ones(2)
    with mode():
        assert taken(outside, torch.ones(2), torch.nn.Parameter(torch.ones(2), requires_grad=False)) == "direct"
        assert taken(outside[::2], None, 3, "silu", True, [True, False], [torch.ones(2)]) == "direct"


def test_a_gradient_is_recorded():
    leaf = torch.ones(2, requires_grad=True)
    assert taken(torch.ones(2), leaf) == "op"
    assert taken(torch.ones(2), [leaf]) == "op"
    with torch.no_grad():
        assert taken(leaf) == "direct"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(2).as_subclass(Wrapped),
        lambda: torch.ones(2, device="meta"),
        lambda: torch.ones(2).to_sparse(),
        lambda: torch.ones(2, dtype=torch.complex64).conj().imag,
        lambda: torch._to_functional_tensor(torch.ones(2)),
    ],
    ids=["subclass", "meta", "sparse", "negated", "functional"],
)
def test_other_tensors_go_through_the_op(make):
    assert taken(make()) == "op"
    assert taken([make()]) == "op"


@pytest.mark.parametrize(
    "listener",
    [Dispatches, Functions, forward_ad.dual_level, torch.profiler.profile],
    ids=["dispatch mode", "function mode", "forward mode", "profiler"],
)
def test_listeners_see_the_op(listener):
    x = torch.ones(2)
    with listener():
        assert taken(x) == "op"
    assert taken(x) == "direct"


def test_transforms_and_tracers_see_the_op():
    found = []

    def ask(x):
        found.append(taken(x))
        return x * 1.0

    torch.func.vmap(ask)(torch.ones(2, 2))
    torch.func.grad(lambda x: ask(x).sum())(torch.ones(2))
    torch.jit.trace(ask, torch.ones(2), check_trace=False)
    assert set(found) == {"op"}


def test_a_mode_sees_the_ops_by_name():
    seen = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.append(op)
            return op(*args, **(kwargs or {}))

    indices = torch.tensor([[0, 1]])
    plan = route(indices, 2)
    with Seen():
        unpermute(torch.ones(2, 3), plan)
    assert torch.ops.moe_kernels.unpermute.default in seen


def test_both_ways_give_the_same_bits():
    torch.manual_seed(0)
    T, E, K, H, I, R = 9, 4, 2, 32, 16, 3
    x, logits, rows = torch.randn(T, H), torch.randn(T, E), torch.randn(T * K, H)
    up, down, A, B = torch.randn(E, 2 * I, H), torch.randn(E, H, I), torch.randn(E, R, H), torch.randn(E, H, R)
    groups = torch.randint(0, E, (T,), dtype=torch.int32)

    def everything():
        gating = topk_gating(logits, K)
        plan = route(gating.indices, E)
        base = x.clone()
        grouped_lora_(base, x, A, B, groups)
        return [
            *gating,
            *plan,
            base,
            permute(x, plan),
            unpermute(rows, plan, gating.weights),
            grouped_mm(rows, up, plan.offsets),
            fused_experts(x, gating.indices, gating.weights, up, down),
            grouped_lora(x, A, B, groups),
        ]

    direct_results = everything()
    with Dispatches():
        through_the_op = everything()
    for a, b in zip(direct_results, through_the_op, strict=True):
        assert torch.equal(a, b)


def test_an_output_has_no_gradient_and_a_changed_base_a_new_version():
    x, A, B, groups = torch.randn(3, 4), torch.randn(1, 2, 4), torch.randn(1, 4, 2), torch.zeros(3, dtype=torch.int32)
    base = torch.zeros(3, 4)
    version = base._version
    assert not grouped_lora_(base, x, A, B, groups).requires_grad
    assert base._version > version
    assert grouped_lora(x, A.requires_grad_(), B, groups).requires_grad
    with torch.no_grad():
        assert not grouped_lora(x, A, B, groups).requires_grad
    with torch.inference_mode():
        assert grouped_lora(x, A, B, groups).is_inference()
