"""fused_experts and grouped_mm with quantized weights, against float64 on the values that the weights stand for."""

from __future__ import annotations

import math

import pytest
import torch

from moe_kernels import fused_experts, grouped_mm, route
from moe_kernels.quantized_weights import Nf4Weight, QuantizedWeight, quantize_int8, quantize_nf4
from moe_kernels.registry import BackendUnavailable, why_not
from moe_kernels.testing import (
    TOLERANCE,
    ExpertInputs,
    assert_close,
    expert_inputs,
    naive_experts,
    random_indices,
    relative_error,
)

from .quantized_formats import FORMATS, QUANTIZE, trainable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((0, 8, 2), (1, 1, 1), (1, 8, 8), (3, 8, 2), (63, 8, 2), (300, 16, 4), (5, 64, 8))


def _sizes(kind: str) -> tuple[int, int]:
    """H and I: odd where the format allows it."""
    return (33, 19) if kind == "int8" else (64, 128)


def _call(inputs: ExpertInputs, gate_up, down, backend, **options):
    x, indices, weights, _, _, gate_up_bias, down_bias = inputs
    return fused_experts(
        x, indices, weights, gate_up, down, gate_up_bias=gate_up_bias, down_bias=down_bias, backend=backend, **options
    )


def check(inputs: ExpertInputs, kind: str, backend: str, dtype: torch.dtype, **options) -> None:
    """Compare the result and the gradients of x, the routing weights and the biases."""
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)
    cast = inputs.to(dtype)
    cast = ExpertInputs(*(trainable(value) for value in cast))
    wide = ExpertInputs(*(trainable(value) for value in cast.to(torch.float64)))
    wide = wide._replace(gate_up=gate_up.dequantize(torch.float64), down=down.dequantize(torch.float64))
    out, want = _call(cast, gate_up, down, backend, **options), naive_experts(wide, **options)
    assert out.dtype == dtype
    assert_close(out, want)
    torch.manual_seed(1)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    if want.requires_grad:
        want.backward(grad.double())
    # The gradient of a weight is one sum over H that may cancel: its terms are the measure.
    terms = float(torch.linalg.vector_norm(grad * want.detach()))
    for name in ("x", "weights", "gate_up_bias", "down_bias"):
        leaf, theirs = getattr(cast, name), getattr(wide, name)
        if leaf is not None:
            expected = torch.zeros_like(leaf) if theirs.grad is None else theirs.grad
            assert_close(leaf.grad, expected, dtype, what=name, scale=terms if name == "weights" else 0.0)
    with torch.no_grad():
        assert torch.equal(_call(cast, gate_up, down, backend, **options), out), "inference and training bits differ"


@FORMATS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-E{}-K{}".format(*s))
def test_fused_experts(shape, kind, engine, dtype):
    check(expert_inputs(*shape, *_sizes(kind)), kind, engine, dtype)


@FORMATS
@pytest.mark.parametrize("routing", ["skewed", "single", "sentinels"])
def test_routings(routing, kind, engine):
    check(expert_inputs(63, 8, 2, *_sizes(kind), bias=True, routing=routing), kind, engine, torch.float32)


@FORMATS
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
def test_gated_forms(activation, interleaved, kind, engine):
    inputs = expert_inputs(17, 4, 2, *_sizes(kind), bias=True, interleaved=interleaved)
    check(inputs, kind, engine, torch.float32, activation=activation, interleaved=interleaved)


@FORMATS
@pytest.mark.parametrize("activation", ["silu", "relu2"])
def test_clamped_forms(activation, kind, engine):
    inputs = expert_inputs(17, 4, 2, *_sizes(kind), bias=True)
    check(inputs, kind, engine, torch.float32, activation=activation, limit=0.75)


@FORMATS
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_without_a_gate(bias, kind, engine):
    check(
        expert_inputs(17, 4, 2, *_sizes(kind), gated=False, bias=bias), kind, engine, torch.float32, activation="gelu"
    )


@FORMATS
@pytest.mark.parametrize("size", [(128, 256), (192, 320), (512, 1088)], ids=lambda s: f"H{s[0]}-I{s[1]}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_model_sizes(size, kind, engine, dtype):
    for T in (5, 130):
        check(expert_inputs(T, 4, 2, *size), kind, engine, dtype)


@pytest.mark.parametrize("size", [1, 31, 257], ids=lambda v: f"H{v}")
def test_int8_takes_any_size(size, engine):
    check(expert_inputs(17, 4, 2, size, size + 1), "int8", engine, torch.float32)


@FORMATS
def test_every_slot_a_sentinel(kind, engine):
    inputs = expert_inputs(5, 4, 2, *_sizes(kind))
    check(inputs._replace(indices=torch.full_like(inputs.indices, 4)), kind, engine, torch.float32)


@FORMATS
def test_zero_rows_and_blocks(kind, engine):
    inputs = expert_inputs(9, 4, 2, *_sizes(kind))
    inputs.gate_up[1, 3] = 0
    inputs.down[2] = 0
    check(inputs, kind, engine, torch.float32)


@FORMATS
def test_gradcheck(kind):
    inputs = expert_inputs(4, 3, 2, 64, 64, bias=True, routing="sentinels")
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)

    def call(x, weights, gate_up_bias, down_bias):
        new = inputs._replace(x=x, weights=weights, gate_up_bias=gate_up_bias, down_bias=down_bias)
        return _call(new, gate_up, down, None)

    given = [trainable(v) for v in (inputs.x, inputs.weights, inputs.gate_up_bias, inputs.down_bias)]
    assert torch.autograd.gradcheck(call, given, fast_mode=True)


@FORMATS
def test_only_the_needed_gradients(kind, engine):
    inputs = expert_inputs(9, 4, 2, *_sizes(kind)).to(torch.float32)
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)
    every = inputs._replace(x=trainable(inputs.x), weights=trainable(inputs.weights))
    _call(every, gate_up, down, engine).sum().backward()
    for name in ("x", "weights"):
        one = inputs._replace(**{name: trainable(getattr(inputs, name))})
        _call(one, gate_up, down, engine).sum().backward()
        torch.testing.assert_close(getattr(one, name).grad, getattr(every, name).grad)


@FORMATS
def test_autocast(kind, engine):
    inputs = expert_inputs(17, 4, 2, *_sizes(kind), bias=True).to(torch.float32)
    gate_up, down = QUANTIZE[kind](inputs.gate_up), QUANTIZE[kind](inputs.down)
    low = _call(inputs.to(torch.bfloat16), gate_up, down, engine)
    with torch.autocast(inputs.x.device.type, torch.bfloat16):
        assert torch.equal(_call(inputs, gate_up, down, engine), low)


# -- int8 activations


def _round_rows(x):
    """Int8 rounding of rows as the specification has it, without the package's code."""
    scale = x.abs().amax(1, keepdim=True) / 127
    return torch.where(scale > 0, torch.round(x / scale), 0).clamp(-127, 127) * scale


def test_dynamic_rounds_x_as_int8():
    torch.manual_seed(0)
    plan = route(random_indices(17, 4, 2), 4)
    w = quantize_int8(torch.randn(4, 21, 33))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(17, 33).to(dtype)
        out = grouped_mm(x, w, plan.offsets, row_token=plan.row_token, dynamic=True, backend="reference")
        rows, parts = _round_rows(x.float())[plan.row_token.long()].double(), []
        for e, (start, end) in enumerate(zip(plan.offsets[:-1].tolist(), plan.offsets[1:].tolist(), strict=True)):
            parts.append(rows[start:end] @ w.dequantize(torch.float64)[e].T)
        assert_close(out, torch.cat(parts))


def test_dynamic_rounds_both_operands_of_the_experts():
    # In float64 the model here and the op round the same numbers, up to one in 1e12.
    inputs = expert_inputs(9, 1, 1, 33, 19)
    gate_up, down = quantize_int8(inputs.gate_up), quantize_int8(inputs.down)
    out = _call(inputs, gate_up, down, "reference", dynamic=True)
    up_2I_H, down_H_I = gate_up.dequantize(torch.float64)[0], down.dequantize(torch.float64)[0]
    gate, up = (_round_rows(inputs.x) @ up_2I_H.T).chunk(2, 1)
    want = _round_rows(torch.nn.functional.silu(gate) * up) @ down_H_I.T * inputs.weights
    assert_close(out, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("T", [5, 90], ids=lambda T: f"T{T}")
def test_dynamic_is_that_of_the_reference(T, dtype, engine):
    inputs = expert_inputs(T, 4, 2, 65, 35, bias=True, routing="sentinels")
    gate_up, down = quantize_int8(inputs.gate_up), quantize_int8(inputs.down)
    cast = inputs.to(dtype)
    want = _call(cast, gate_up, down, "reference", dynamic=True)
    assert_close(_call(cast, gate_up, down, engine, dynamic=True), want)
    plan = route(cast.indices, 4, backend="reference")
    given = {"offsets": plan.offsets, "row_token": plan.row_token, "bias": cast.gate_up_bias, "dynamic": True}
    want = grouped_mm(cast.x, gate_up, **given, backend="reference")
    assert_close(grouped_mm(cast.x, gate_up, **given, backend=engine), want)


@pytest.mark.parametrize("format", ["nf4", "int8", "int8-dynamic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batch_invariance_on_request(format, dtype, engine):
    if engine == "reference":
        pytest.skip("torch's matmul makes no such promise")
    inputs = expert_inputs(70, 4, 2, 64, 64)
    quantize = quantize_nf4 if format == "nf4" else quantize_int8
    gate_up, down = quantize(inputs.gate_up), quantize(inputs.down)
    x, indices, weights, *_ = inputs.to(dtype)

    def call(rows):
        given = inputs.to(dtype)._replace(x=x[rows], indices=indices[rows], weights=weights[rows])
        return _call(given, gate_up, down, engine, dynamic=format == "int8-dynamic", batch_invariant=True)

    whole = call(slice(None))
    for rows in (slice(0, 1), slice(3, 40)):
        assert torch.equal(call(rows), whole[rows])


def test_the_gradient_of_dynamic_is_straight_through(engine):
    torch.manual_seed(0)
    plan = route(random_indices(17, 4, 2), 4)
    w = quantize_int8(torch.randn(4, 21, 33))
    grads = []
    for dynamic in (False, True):
        torch.manual_seed(1)
        x = torch.randn(17, 33).requires_grad_()
        out = grouped_mm(x, w, plan.offsets, row_token=plan.row_token, dynamic=dynamic, backend=engine)
        out.backward(torch.ones_like(out))
        grads.append(x.grad)
    assert torch.equal(*grads)
    inputs = expert_inputs(9, 4, 2, 33, 19).to(torch.float32)
    inputs = inputs._replace(x=trainable(inputs.x), weights=trainable(inputs.weights))
    _call(inputs, quantize_int8(inputs.gate_up), quantize_int8(inputs.down), engine, dynamic=True).sum().backward()
    exact = inputs._replace(x=trainable(inputs.x), weights=trainable(inputs.weights)).to(torch.float64)
    exact = exact._replace(x=trainable(exact.x), weights=trainable(exact.weights))
    naive_experts(exact).sum().backward()
    assert relative_error(inputs.x.grad, exact.x.grad) < 0.05
    assert relative_error(inputs.weights.grad, exact.weights.grad) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_levels(engine, dtype):
    """What the formats cost against the unquantized float64 result, on Gaussian weights and inputs.

    Measured with the reference: int8 1.40e-2, dynamic 2.68e-2, NF4 0.162 in float32; the 16-bit type's own rounding
    is independent of that.
    """
    inputs = expert_inputs(16, 4, 2, 2048, 768)
    want = naive_experts(inputs)
    cast = inputs.to(dtype)
    own = 0.0 if dtype == torch.float32 else TOLERANCE[dtype]
    int8 = quantize_int8(inputs.gate_up), quantize_int8(inputs.down)
    assert relative_error(_call(cast, *int8, engine), want) <= math.hypot(1.5e-2, own)
    assert relative_error(_call(cast, *int8, engine, dynamic=True), want) <= math.hypot(2.7e-2, own)
    for double_quant in (True, False):
        nf4 = quantize_nf4(inputs.gate_up, double_quant), quantize_nf4(inputs.down, double_quant)
        assert relative_error(_call(cast, *nf4, engine), want) <= math.hypot(0.17, own)


# -- grouped_mm

OPTIONS = {
    "rows": (),
    "gather": ("row_token",),
    "scatter": ("slot_row", "row_scale"),
    "everything": ("row_token", "slot_row", "bias", "row_scale", "base"),
}


@FORMATS
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grouped_mm(kind, options, engine, dtype):
    H, O = (33, 21) if kind == "int8" else (128, 21)
    for T, E, K in ((0, 8, 2), (3, 8, 2), (63, 8, 2)):
        torch.manual_seed(0)
        plan, N = route(random_indices(T, E, K, "sentinels"), E, backend="reference"), T * K
        w = QUANTIZE[kind](torch.randn(E, O, H) * H**-0.5)
        shapes = {
            "x": (T if "row_token" in options else N, H),
            "bias": (E, O),
            "row_scale": (N,),
            "base": (T if "slot_row" in options else N, O),
        }
        kinds = {"row_scale": torch.float32}
        leaves = {
            name: torch.randn(*shape).to(kinds.get(name, dtype)).requires_grad_()
            for name, shape in shapes.items()
            if name == "x" or name in options
        }
        given = {name: getattr(plan, name) for name in ("row_token", "slot_row") if name in options}
        wide = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
        out = grouped_mm(w=w, offsets=plan.offsets, backend=engine, **leaves, **given)
        exact = w.dequantize(torch.float64)
        want = grouped_mm(w=exact, offsets=plan.offsets, backend="reference", **wide, **given)
        assert_close(out, want)
        grad = torch.randn(out.shape).to(dtype)
        out.backward(grad)
        want.backward(grad.double())
        terms = float(torch.linalg.vector_norm(grad * want.detach()))
        for name, leaf in leaves.items():
            scale = terms if name == "row_scale" else 0.0
            assert_close(leaf.grad, wide[name].grad, dtype, what=name, scale=scale)


@FORMATS
def test_a_low_rank_side_path_trains(kind, engine):
    """Frozen quantized experts + a differentiable delta: gradients reach x and the delta's matrices."""
    torch.manual_seed(0)
    E, O, H, R = 4, 21, 128, 3
    plan = route(random_indices(17, E, 2), E)
    w = QUANTIZE[kind](torch.randn(E, O, H) * H**-0.5)
    leaves = [torch.randn(17, H), torch.randn(E, R, H) * H**-0.5, torch.randn(E, O, R)]

    def run(weight, x, a, b, backend):
        gathered = {"offsets": plan.offsets, "row_token": plan.row_token, "backend": backend}
        base = grouped_mm(x, weight, **gathered)
        return grouped_mm(grouped_mm(x, a, **gathered), b, plan.offsets, base=base, backend=backend)

    mine = [leaf.clone().requires_grad_() for leaf in leaves]
    wide = [leaf.double().requires_grad_() for leaf in leaves]
    out, want = run(w, *mine, engine), run(w.dequantize(torch.float64), *wide, "reference")
    assert_close(out, want)
    out.square().sum().backward()
    want.square().sum().backward()
    for name, left, right in zip("xab", mine, wide, strict=True):
        assert_close(left.grad, right.grad, what=name)


def test_the_cpu_backend_serves_or_says_why():
    inputs = expert_inputs(3, 4, 2, 64, 64).to(torch.float32)
    gate_up, down = quantize_nf4(inputs.gate_up), quantize_nf4(inputs.down)
    reason = why_not("cpu", "fused_experts_quantized", inputs.x)
    if reason is None:
        _call(inputs, gate_up, down, "cpu")
    else:
        with pytest.raises(BackendUnavailable, match="fused_experts_quantized: backend 'cpu' cannot serve"):
            _call(inputs, gate_up, down, "cpu")
    assert _call(inputs, gate_up, down, None).shape == (3, 64)


def test_a_weight_is_what_it_says():
    weight = quantize_nf4(torch.randn(2, 3, 128))
    assert isinstance(weight, QuantizedWeight) and isinstance(weight, Nf4Weight)
    assert weight.shape == (2, 3, 128) and weight.dtype == torch.uint8
    assert weight.device.type == torch.get_default_device().type
    assert weight.nbytes == 2 * 3 * 64 + 12 + 4 + 1024 + 4
    assert weight.dequantize(torch.bfloat16).dtype == torch.bfloat16
