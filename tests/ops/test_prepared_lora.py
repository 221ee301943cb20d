"""Adapters that are checked once, against `grouped_lora_`."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import grouped_lora_
from moe_kernels.ops import prepared_lora as module
from moe_kernels.ops.prepared_lora import PreparedLora

N, H, O, G, R = 12, 24, 40, 5, 8


@pytest.fixture(autouse=True)
def on_the_device():
    """Without the device that the other tests of ops set: that is a mode, which goes through the public function."""


def factors(dtype=torch.float32):
    torch.manual_seed(0)
    A, B = torch.randn(G, R, H).to(dtype), torch.randn(G, O, R).to(dtype)
    groups = torch.randint(0, G + 1, (N,), dtype=torch.int32)
    return A, B, groups, torch.rand(G)


def rows(dtype=torch.float32):
    torch.manual_seed(1)
    return torch.randn(N, O).to(dtype), torch.randn(N, H).to(dtype)


@pytest.fixture
def public(monkeypatch):
    """Counts the calls that were left to the public function."""
    calls = []
    monkeypatch.setattr(module, "grouped_lora_", lambda *a, **k: calls.append(1) or grouped_lora_(*a, **k))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("ranked", [False, True])
def test_the_same_bits(dtype, ranked, public):
    A, B, groups, scaling = factors(dtype)
    ranks = torch.tensor([1, 8, 0, 3, 5], dtype=torch.int32) if ranked else None
    base, x = rows(dtype)
    wanted = grouped_lora_(base.clone(), x, A, B, groups, scaling, ranks=ranks)
    prepared = PreparedLora(A, B, groups, scaling, ranks=ranks)
    found = base.clone()
    version = found._version
    assert prepared.add_(found, x) is found
    assert torch.equal(found, wanted) and found._version > version and not public


def test_factors_that_change_in_place_are_seen():
    A, B, groups, scaling = factors()
    prepared = PreparedLora(A, B, groups, scaling)
    base, x = rows()
    with torch.no_grad():
        A.mul_(2.0)
        B.data = B.data.flip(0)
    found, wanted = base.clone(), base.clone()
    assert torch.equal(prepared.add_(found, x), grouped_lora_(wanted, x, A, B, groups, scaling))


def test_columns_of_a_larger_tensor():
    A, B, groups, scaling = factors()
    base, x = rows()
    wide = torch.zeros(N, O + 7)
    wide[:, :O] = base
    PreparedLora(A, B, groups, scaling).add_(wide[:, :O], x)
    assert torch.equal(wide[:, :O], grouped_lora_(base.clone(), x, A, B, groups, scaling)) and not wide[:, O:].any()


def test_what_needs_more_than_the_kernel_is_left_to_the_public_function(public):
    A, B, groups, scaling = factors()
    prepared = PreparedLora(A, B, groups, scaling)
    base, x = rows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prepared.add_(base.bfloat16(), x.bfloat16())
    with pytest.raises(ValueError, match="requires_grad"):
        prepared.add_(base, x.clone().requires_grad_())
    with torch.no_grad():
        prepared.add_(base, x.clone().requires_grad_())
    with pytest.raises(ValueError, match="grouped_lora_: A: expected shape"):
        prepared.add_(base, x[:, 1:])
    with pytest.raises(ValueError, match="base"):
        prepared.add_(base[1:], x)
    with pytest.raises(TypeError):
        prepared.add_(base.double(), x)
    assert len(public) == 5


def test_compiles():
    A, B, groups, scaling = factors()
    prepared = PreparedLora(A, B, groups, scaling)
    base, x = rows()
    compiled = torch.compile(lambda base, x: prepared.add_(base * 1.0, x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(base, x), prepared.add_(base.clone(), x))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"groups": torch.tensor([-1] * N)}, "negative"), ({"B": torch.zeros(G, O, R + 1)}, "B"),
     ({"scaling": torch.ones(G + 1)}, "scaling"), ({"A": torch.zeros(0, R, H)}, "A")],
)  # fmt: skip
def test_refuses(change, says):
    A, B, groups, scaling = factors()
    given = {"A": A, "B": B, "groups": groups, "scaling": scaling, **change}
    with pytest.raises((ValueError, TypeError), match=says):
        PreparedLora(given["A"], given["B"], given["groups"], given["scaling"])
