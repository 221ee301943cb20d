"""fused_experts, forward and every gradient, against a loop over experts in float64."""

from __future__ import annotations

import pytest
import torch

from moe_kernels import fused_experts
from moe_kernels.testing import (
    ExpertInputs,
    assert_close,
    expert_inputs,
    naive_experts,
    relative_error,
    whole_pre_activation,
)

H, I = 33, 19
GATED = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss")
PLAIN = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


def _leaves(inputs: ExpertInputs) -> ExpertInputs:
    copies = {n: v.detach().clone() for n, v in inputs._asdict().items() if v is not None}
    for name, value in copies.items():
        value.requires_grad_(name != "indices")
    return ExpertInputs(**{name: copies.get(name) for name in inputs._fields})


def _call(inputs: ExpertInputs, backend: str | None, **options) -> torch.Tensor:
    x, indices, weights, gate_up, down, gate_up_bias, down_bias = inputs
    return fused_experts(
        x, indices, weights, gate_up, down, gate_up_bias=gate_up_bias, down_bias=down_bias, backend=backend, **options
    )


def check(inputs: ExpertInputs, backend: str, dtype: torch.dtype, **options) -> None:
    cast = _leaves(inputs.to(dtype))
    wide = _leaves(cast.to(torch.float64))
    out, want = _call(cast, backend, **options), naive_experts(wide, **options)
    assert_close(out, want)
    torch.manual_seed(1)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    if want.requires_grad:
        want.backward(grad.double())
    # The gradient of a weight is one sum over H that may cancel: its terms are the measure.
    terms = float(torch.linalg.vector_norm(grad * want.detach()))
    for name, leaf in cast._asdict().items():
        if leaf is not None and name != "indices":
            theirs = getattr(wide, name).grad
            theirs = torch.zeros_like(leaf) if theirs is None else theirs
            assert_close(leaf.grad, theirs, dtype, what=name, scale=terms if name == "weights" else 0.0)
    with torch.no_grad():
        inference = _call(cast, backend, **options)
    if backend == "triton":
        # Without gradients a few tokens go another way there, which sums in another order.
        assert_close(inference, want.detach(), what="inference")
    else:
        assert torch.equal(inference, out), "inference and training bits differ"


def test_fused_experts(T, E, K, backend, dtype):
    check(expert_inputs(T, E, K, H, I), backend, dtype)


@pytest.mark.parametrize("routing", ["skewed", "single", "sentinels"])
def test_routings(routing, backend, dtype):
    check(expert_inputs(63, 8, 2, H, I, routing=routing), backend, dtype)


@pytest.mark.parametrize("activation", GATED)
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])
def test_gated_forms(activation, interleaved, transposed, backend, dtype):
    inputs = expert_inputs(63, 8, 2, H, I, bias=True, interleaved=interleaved, transposed=transposed)
    check(inputs, backend, dtype, activation=activation, interleaved=interleaved, transposed=transposed)


@pytest.mark.parametrize("activation", GATED[:-1])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_clamped_forms(activation, interleaved, backend, dtype):
    inputs = expert_inputs(63, 8, 2, H, I, bias=True, interleaved=interleaved)
    check(whole_pre_activation(inputs), backend, dtype, activation=activation, interleaved=interleaved, limit=2.5)


def test_clamped_for_a_few_tokens(backend, dtype):
    check(whole_pre_activation(expert_inputs(3, 8, 2, H, I)), backend, dtype, limit=2.5)


@pytest.mark.parametrize("activation", PLAIN)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_forms_without_a_gate(activation, bias, backend, dtype):
    check(expert_inputs(63, 8, 2, H, I, gated=False, bias=bias), backend, dtype, activation=activation)


@pytest.mark.parametrize("size", [1, 31, 64, 257], ids=lambda v: f"H{v}")
def test_widths(size, backend, dtype):
    check(expert_inputs(17, 4, 2, size, size + 1), backend, dtype)


# Sizes of small models: whole tiles, several blocks of the sum over k, groups of more rows than one tile has.
@pytest.mark.parametrize("H,I", [(128, 256), (192, 384), (256, 128), (320, 640)])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("T", [5, 300])
def test_model_sizes(T, H, I, gated, backend, dtype):
    check(expert_inputs(T, 8, 2, H, I, gated=gated), backend, dtype)


@pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])
def test_one_wide_expert(transposed, backend, dtype):
    check(expert_inputs(130, 2, 1, 520, 1100, transposed=transposed), backend, dtype, transposed=transposed)


def test_every_slot_a_sentinel(backend, dtype):
    inputs = expert_inputs(5, 4, 2, H, I)
    inputs = inputs._replace(indices=torch.full_like(inputs.indices, 4))
    check(inputs, backend, dtype)


def test_a_sentinel_ignores_its_weight(backend):
    inputs = expert_inputs(5, 4, 2, H, I, routing="sentinels").to(torch.float32)
    clean = _call(inputs, backend)
    weights = torch.where(inputs.indices >= 4, torch.nan, inputs.weights)
    assert torch.equal(_call(inputs._replace(weights=weights), backend), clean)


def test_error_is_at_most_the_loops(backend, dtype):
    inputs = expert_inputs(200, 8, 2, 256, 128).to(dtype)
    want = naive_experts(inputs.to(torch.float64))
    ours, loop = relative_error(_call(inputs, backend), want), relative_error(naive_experts(inputs), want)
    assert ours <= 1.2 * loop, f"{ours:.3g} against the loop's {loop:.3g}"


def test_only_the_needed_gradients(backend):
    inputs = expert_inputs(63, 8, 2, H, I).to(torch.float32)
    for name in ("x", "weights", "gate_up", "down"):
        cast = inputs._replace(**{name: getattr(inputs, name).clone().requires_grad_()})
        _call(cast, backend).sum().backward()
        wide = inputs.to(torch.float64)
        wide = wide._replace(**{name: getattr(wide, name).clone().requires_grad_()})
        naive_experts(wide).sum().backward()
        assert_close(getattr(cast, name).grad, getattr(wide, name).grad, what=name)


@pytest.mark.parametrize("activation,limit", [*((name, None) for name in GATED), ("silu", 0.5)])
def test_gradcheck(activation, limit):
    inputs = _leaves(expert_inputs(4, 3, 2, 5, 3, bias=True, routing="sentinels"))

    def call(x, weights, gate_up, down, gate_up_bias, down_bias):
        args = ExpertInputs(x, inputs.indices, weights, gate_up, down, gate_up_bias, down_bias)
        return _call(args, None, activation=activation, limit=limit)

    x, _, weights, gate_up, down, gate_up_bias, down_bias = inputs
    assert torch.autograd.gradcheck(call, (x, weights, gate_up, down, gate_up_bias, down_bias))


def test_autocast(backend):
    inputs = expert_inputs(63, 8, 2, H, I).to(torch.float32)
    low = _call(inputs.to(torch.bfloat16), backend)
    with torch.autocast(inputs.x.device.type, torch.bfloat16):
        assert torch.equal(_call(inputs, backend), low)
