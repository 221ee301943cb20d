"""Large results lie in memory that is kept between calls, and are right in it."""

from __future__ import annotations

import gc

import pytest
import torch

from moe_kernels import fused_experts
from moe_kernels.native import native
from moe_kernels.testing import assert_close, expert_inputs

core = native()[0]
if core is None:
    pytest.skip("no native core", allow_module_level=True)

from moe_kernels.backends.cpu import kept_memory  # noqa: E402
from moe_kernels.backends.cpu.kept_memory import kept_result  # noqa: E402

MIB = 1 << 20


@pytest.fixture(autouse=True)
def limit():
    """Nothing kept at first, 64 MiB at most; afterwards what the process had asked for."""
    kept_memory._keeps()
    core.set_kept_limit(0)
    core.set_kept_limit(64 * MIB)
    yield
    core.set_kept_limit(0)
    kept_memory._keeps.cache_clear()


def _result(mebibytes):
    return kept_result(torch.empty(0, dtype=torch.bfloat16), (mebibytes, MIB // 2))


def test_freed_memory_is_used_again():
    first, used = _result(20)
    assert not used and first.shape == (20, MIB // 2) and core.kept_bytes() == 0
    place = first.data_ptr()
    part = first[3:].detach()
    del first
    assert core.kept_bytes() == 0, "a view still has it"
    del part
    assert core.kept_bytes() == 20 * MIB
    second, used = _result(18)
    assert used and second.data_ptr() == place and core.kept_bytes() == 0


def test_a_much_larger_block_is_left_alone():
    _result(40)
    assert not _result(20)[1]


def test_the_limit_holds():
    large, _ = _result(40)
    other, _ = _result(30)
    del large, other
    assert core.kept_bytes() == 30 * MIB, "the longest kept goes first"
    _result(70)
    assert core.kept_bytes() == 30 * MIB, "what never fits drives nothing out"
    core.set_kept_limit(0)
    assert core.kept_bytes() == 0


def test_small_and_unwanted_results_are_ordinary():
    like = torch.empty(0)
    assert kept_result(like, (8, 8))[0].shape == (8, 8)
    assert kept_result(like, (4096, 4096), needed=False)[0].shape == (0,)
    gc.collect()
    assert core.kept_bytes() == 0


@pytest.mark.parametrize("mebibytes", ["0", "64"])
def test_the_environment_sets_the_limit(monkeypatch, mebibytes):
    monkeypatch.setenv("MOE_KERNELS_KEPT_MIB", mebibytes)
    kept_memory._keeps.cache_clear()
    _result(20)
    assert core.kept_bytes() == (20 * MIB if mebibytes == "64" else 0)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
def test_gradients_in_used_memory(monkeypatch, transposed):
    """Of a step after another one whose gradients are gone; what they have left behind shows nowhere."""
    monkeypatch.setattr(kept_memory, "LEAST_BYTES", 64)
    inputs = expert_inputs(40, 6, 2, 96, 64, transposed=transposed, routing="skewed").to(torch.bfloat16)

    def step(backend):
        leaves = [t.clone().requires_grad_() for t in (inputs.x, inputs.gate_up, inputs.down)]
        x, gate_up, down = leaves
        out = fused_experts(x, inputs.indices, inputs.weights, gate_up, down, transposed=transposed, backend=backend)
        out.sum().backward()
        return [leaf.grad for leaf in leaves]

    want = step("reference")
    first = step("cpu")
    copies = [grad.clone() for grad in first]
    for grad in first:
        grad.fill_(float("nan"))
    del first, grad
    assert core.kept_bytes() > 0
    for got, before, reference in zip(step("cpu"), copies, want, strict=True):
        assert torch.equal(got, before)
        assert_close(got, reference.double(), torch.bfloat16)
