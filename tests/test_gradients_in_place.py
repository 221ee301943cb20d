"""Gradients that are added to an existing `.grad` equal those that autograd adds."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import gradients_in_place
from moe_kernels.native import native
from moe_kernels.ops.fused_experts import fused_experts
from moe_kernels.testing import assert_close, expert_inputs

BACKENDS = ["reference", pytest.param("cpu", marks=pytest.mark.skipif(native()[0] is None, reason="no native core"))]


def _steps(inputs, transposed, backend, in_place, steps=3):
    """Return the gradients of both weights after some backward passes, and where they lay after the first."""
    gate_up, down = inputs.gate_up.clone().requires_grad_(), inputs.down.clone().requires_grad_()
    places = []
    for step in range(steps):
        x = (inputs.x * (step + 1)).requires_grad_()
        out = fused_experts(x, inputs.indices, inputs.weights, gate_up, down, transposed=transposed, backend=backend)
        if in_place:
            with gradients_in_place():
                out.sum().backward()
        else:
            out.sum().backward()
        places.append((gate_up.grad.data_ptr(), down.grad.data_ptr()))
    return gate_up.grad, down.grad, places


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(9, 5, 2, 48, 33), (300, 2, 2, 64, 32)], ids=["small", "many-rows"])
def test_equal(shape, dtype, transposed, backend):
    inputs = expert_inputs(*shape, transposed=transposed, routing="skewed").to(dtype)
    want = _steps(inputs, transposed, backend, in_place=False)
    got = _steps(inputs, transposed, backend, in_place=True)
    assert_close(got[0], want[0].double(), dtype)
    assert_close(got[1], want[1].double(), dtype)
    assert len(set(got[2])) == 1, "the gradients moved"


@pytest.mark.parametrize("backend", BACKENDS)
def test_hooked_weights_are_left_to_autograd(backend):
    inputs = expert_inputs(4, 3, 2, 16, 8).to(torch.float32)
    gate_up, down = inputs.gate_up.clone().requires_grad_(), inputs.down.clone().requires_grad_()
    seen = []
    gate_up.register_hook(lambda grad: seen.append(grad.shape))
    for _ in range(2):
        out = fused_experts(inputs.x, inputs.indices, inputs.weights, gate_up, down, backend=backend)
        with gradients_in_place():
            out.sum().backward()
    assert len(seen) == 2


def test_outside_nothing_changes():
    inputs = expert_inputs(4, 3, 2, 16, 8).to(torch.float32)
    gate_up, down = inputs.gate_up.clone().requires_grad_(), inputs.down.clone().requires_grad_()
    gate_up.grad, down.grad = torch.zeros_like(gate_up), torch.zeros_like(down)
    out = fused_experts(inputs.x, inputs.indices, inputs.weights, gate_up, down)
    grads = torch.autograd.grad(out.sum(), [gate_up, down])
    assert all(g is not None for g in grads) and not gate_up.grad.any()
