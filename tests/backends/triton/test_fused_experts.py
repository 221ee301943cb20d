"""What the op tests do not reach: tiles of other sizes, tensor descriptors, the way of few tokens, strided weights."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("MOE_TEST_DEVICE", "cpu")
if DEVICE == "cpu":
    # Read when triton is imported, whose own functions are kernels too.
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="triton is not installed")

from moe_kernels import fused_experts, grouped_mm, route  # noqa: E402
from moe_kernels.backends.triton import platform, tiles  # noqa: E402
from moe_kernels.backends.triton.activation_gradient import activation_gradient  # noqa: E402
from moe_kernels.backends.triton.decode import decode  # noqa: E402
from moe_kernels.backends.triton.grouped_mm_kernels import multiply_rows  # noqa: E402
from moe_kernels.backends.triton.row_reductions import sum_by_token, weight_of_row  # noqa: E402
from moe_kernels.backends.triton.tiles import Tile  # noqa: E402
from moe_kernels.backends.triton.up_projection import up_projection  # noqa: E402
from moe_kernels.backends.triton.weights import backwards, weight_of  # noqa: E402
from moe_kernels.testing import (  # noqa: E402
    ExpertInputs,
    assert_close,
    expert_inputs,
    naive_experts,
    random_indices,
    relative_error,
)

# Gate, interleaved, transposed: every way in which a weight's columns are read.
FORMS = {
    "halves": (True, False, False),
    "interleaved": (True, True, False),
    "halves-transposed": (True, False, True),
    "interleaved-transposed": (True, True, True),
    "plain": (False, False, False),
}


@pytest.fixture(autouse=True)
def on_the_device():
    with torch.device(DEVICE):
        yield


def _call(inputs: ExpertInputs, **options) -> torch.Tensor:
    *plain, gate_up_bias, down_bias = inputs
    return fused_experts(*plain, gate_up_bias=gate_up_bias, down_bias=down_bias, backend="triton", **options)


def _check_gradients(inputs: ExpertInputs, dtype: torch.dtype, **options) -> None:
    def leaves(source: ExpertInputs) -> ExpertInputs:
        return ExpertInputs(
            *(t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in source)
        )

    low = leaves(inputs.to(dtype))
    wide = leaves(inputs.to(dtype).to(torch.float64))
    out, want = _call(low, **options), naive_experts(wide, **options)
    assert_close(out, want)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    scale = float(torch.linalg.vector_norm(grad * want.detach()))
    for name, mine, theirs in zip(inputs._fields, low, wide, strict=True):
        if mine is not None and mine.is_floating_point():
            assert_close(mine.grad, theirs.grad, dtype, what=name, scale=scale if name == "weights" else 0.0)


@pytest.mark.skipif(DEVICE != "cpu", reason="the sizes are not those of matrix instructions")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_many_small_tiles(form, monkeypatch):
    """Several blocks of everything: rows, columns, steps of the sums, tiles of a program, groups of tiles."""
    gated, interleaved, transposed = form
    monkeypatch.setattr(tiles, "rows_tile", lambda *_: Tile(16, 32, 16, 4, 2))
    monkeypatch.setattr(tiles, "gradient_tile", lambda *_: Tile(16, 16, 16, 4, 2))
    monkeypatch.setattr(tiles, "GROUP_ROWS", 2)
    inputs = expert_inputs(
        40, 3, 2, 40, 37, gated=gated, interleaved=interleaved, transposed=transposed, bias=True, routing="sentinels"
    )
    _check_gradients(inputs, torch.float32, interleaved=interleaved, transposed=transposed)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("sizes", [(72, 40), (64, 128)], ids=lambda s: f"H{s[0]}-I{s[1]}")
def test_descriptors_read_what_pointers_read(form, sizes):
    """And nothing else: beside each expert's weight lie those of others, which are NaN."""
    if DEVICE != "cpu" and platform.device_of(torch.empty(0)).architecture < 90:
        pytest.skip("the GPU has no tensor descriptors")
    gated, interleaved, transposed = form
    H, I = sizes
    inputs = expert_inputs(9, 3, 1, H, I, gated=gated, interleaved=interleaved, transposed=transposed, bias=True).to(
        torch.bfloat16
    )
    inputs.indices.fill_(1)
    for w in (inputs.gate_up, inputs.down):
        w[0], w[2] = torch.nan, torch.nan
    plan = route(inputs.indices, 3)
    up, down = weight_of(inputs.gate_up, transposed), weight_of(inputs.down, transposed)
    results = []
    for descriptors in (True, False):
        act, pre = up_projection(
            inputs.x,
            up,
            inputs.gate_up_bias,
            plan.offsets,
            plan.row_token,
            "silu",
            None,
            gated,
            interleaved,
            True,
            descriptors=descriptors,
        )
        rows = multiply_rows(act, down, plan.offsets, None, descriptors=descriptors)
        weight = weight_of_row(inputs.weights, plan.slot_row)
        grads = activation_gradient(
            inputs.x,
            backwards(down),
            pre,
            weight,
            plan.offsets,
            plan.row_token,
            "silu",
            None,
            gated,
            interleaved,
            True,
            True,
            True,
            descriptors=descriptors,
        )
        arguments = (inputs.x, inputs.indices, inputs.weights, up, down, inputs.gate_up_bias, inputs.down_bias)
        out = decode(*arguments, "silu", None, gated, interleaved, descriptors=descriptors)
        results.append([act, pre, rows, *grads, out])
    for one, other in zip(*results, strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("T,E,K", [(1, 8, 2), (2, 40, 8), (17, 8, 2), (40, 2, 1)])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_decode(T, E, K, form):
    gated, interleaved, transposed = form
    inputs = expert_inputs(
        T, E, K, 33, 70, gated=gated, interleaved=interleaved, transposed=transposed, bias=True, routing="sentinels"
    ).to(torch.float32)
    clean = naive_experts(inputs.to(torch.float64), interleaved=interleaved, transposed=transposed)
    inputs = inputs._replace(weights=torch.where(inputs.indices < E, inputs.weights, torch.nan))
    up, down = weight_of(inputs.gate_up, transposed), weight_of(inputs.down, transposed)
    for indices in (inputs.indices, inputs.indices.long()):
        arguments = (inputs.x, indices, inputs.weights, up, down, inputs.gate_up_bias, inputs.down_bias)
        assert_close(decode(*arguments, "silu", None, gated, interleaved), clean)


def test_one_expert_twice_in_a_token():
    inputs = expert_inputs(3, 8, 2, 33, 19).to(torch.float32)
    inputs.indices.fill_(5)
    assert_close(_call(inputs), naive_experts(inputs.to(torch.float64)))


def test_weights_with_other_strides():
    inputs = expert_inputs(40, 3, 2, 24, 16).to(torch.bfloat16)
    want = _call(inputs)
    gate_up = torch.empty(24, 32, 3, dtype=torch.bfloat16).permute(2, 1, 0).copy_(inputs.gate_up)
    down = inputs.down.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.zeros(40, 48, dtype=torch.bfloat16)
    wide[:, ::2] = inputs.x
    assert relative_error(_call(inputs._replace(gate_up=gate_up, down=down, x=wide[:, ::2])), want) < 1e-2


def test_batch_invariant_is_training_and_inference_alike():
    inputs = expert_inputs(20, 4, 2, 33, 19).to(torch.float32)
    whole = _call(inputs, batch_invariant=True)
    training = _call(inputs._replace(x=inputs.x.clone().requires_grad_()), batch_invariant=True)
    assert torch.equal(training, whole)
    if DEVICE != "cpu":
        # The interpreter's product promises nothing about bits.
        few = ExpertInputs(*(t[:3] for t in inputs[:3]), *inputs[3:])
        assert torch.equal(_call(few, batch_invariant=True), whole[:3])


def test_rows_are_summed_by_token_without_a_plan():
    plan = route(random_indices(30, 5, 2, "sentinels"), 5)
    rows = torch.randn(60, 20)
    owned = int(plan.offsets[-1])
    rows[owned:] = torch.nan
    want = torch.zeros(30, 20).index_add(0, plan.row_token[:owned].long(), rows[:owned])
    assert_close(sum_by_token(rows, plan.row_token, plan.offsets, 30), want)


def test_nan_of_another_expert_stays_there():
    plan = route(random_indices(20, 4, 1), 4)
    counts = plan.offsets.diff().tolist()
    x = torch.randn(20, 24)
    x[int(plan.offsets[1]) : int(plan.offsets[2])] = torch.nan
    w = torch.randn(4, 16, 24, requires_grad=True)
    out = grouped_mm(x, w, plan.offsets, backend="triton")
    out.backward(torch.randn(out.shape))
    for e, count in enumerate(counts):
        assert torch.isnan(w.grad[e]).all() if e == 1 and count else torch.isfinite(w.grad[e]).all()
