"""Which calls go past the dispatcher, and that nothing that listens to it is passed over."""

from __future__ import annotations

import contextlib

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


def _experts(dtype=torch.float32, T=5, E=4, K=2, H=32, I=16):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    indices = torch.randint(0, E, (T, K), generator=generator)
    routing = torch.rand(T, K, generator=generator)
    return {
        "x": draw(T, H),
        "indices": indices,
        "weights": routing,
        "gate_up": draw(E, 2 * I, H),
        "down": draw(E, H, I),
    }


CHANGES = {
    "as it is": lambda a: {},
    "int32": lambda a: {"indices": a["indices"].int()},
    "sentinels": lambda a: {"indices": a["indices"] + 2},
    "no tokens": lambda a: {name: a[name][:0] for name in ("x", "indices", "weights")},
    "rows apart": lambda a: {"x": a["x"].repeat(1, 2)[:, :32]},
    "columns apart": lambda a: {"indices": a["indices"].repeat_interleave(2, 1)[:, ::2]},
    "routing in x's dtype": lambda a: {"weights": a["weights"].to(a["x"].dtype)},
    "transposed": lambda a: {n: a[n].mT.contiguous() for n in ("gate_up", "down")} | {"transposed": True},
    "strides": lambda a: {n: a[n].mT.contiguous().mT for n in ("gate_up", "down")},
    "biases": lambda a: {"gate_up_bias": a["gate_up"][:, :, 0], "down_bias": a["down"][:, :, 0].contiguous()},
    "no gate": lambda a: {"gate_up": a["gate_up"][:, :16], "activation": "gelu"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("change", CHANGES)
def test_experts_without_checks_give_the_same_bits(change, dtype):
    arguments = _experts(dtype)
    arguments |= CHANGES[change](arguments)
    with Dispatches():
        want = fused_experts(**arguments)
    got = fused_experts(**arguments)
    assert got.dtype == want.dtype and torch.equal(got, want)


WRONG = {
    "no tensor": {"x": None},
    "a number": {"gate_up": 3},
    "negative": {"indices": torch.tensor([[0, -1]] * 5)},
    "float indices": {"indices": torch.zeros(5, 2)},
    "other tokens": {"weights": torch.ones(4, 2)},
    "other hidden size": {"x": torch.ones(5, 31)},
    "other inner size": {"down": torch.ones(4, 32, 15)},
    "other experts": {"down": torch.ones(3, 32, 16)},
    "flat weight": {"gate_up": torch.ones(4, 32)},
    "many dimensions": {"x": torch.ones(1, 1, 1, 1, 5, 32)},
    "dtype": {"down": torch.ones(4, 32, 16, dtype=torch.bfloat16)},
    "dtype of a bias": {"down_bias": torch.ones(4, 32, dtype=torch.bfloat16)},
    "size of a bias": {"gate_up_bias": torch.ones(4, 31)},
    "activation": {"activation": "tanh"},
    "gpt_oss without a gate": {"gate_up": torch.ones(4, 16, 32), "activation": "gpt_oss"},
}


@pytest.mark.parametrize("change", WRONG)
def test_experts_without_checks_leave_errors_to_the_checks(change):
    arguments = _experts() | WRONG[change]
    raised = []
    for listener in (Dispatches, contextlib.nullcontext):
        with listener(), pytest.raises((ValueError, TypeError)) as error:
            fused_experts(**arguments)
        raised.append(str(error.value))
    assert raised[0] == raised[1]


def test_experts_without_checks_are_not_taken_where_another_backend_is_asked_for(monkeypatch):
    arguments = _experts()
    monkeypatch.setenv("MOE_KERNELS_BACKEND", "nobody")
    with pytest.raises(ValueError, match="nobody"):
        fused_experts(**arguments)


def test_experts_without_checks_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused_experts(**_experts()).dtype == torch.bfloat16


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
