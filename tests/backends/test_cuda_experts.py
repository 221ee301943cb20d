"""grouped_mm and fused_experts of the CUDA backend, forward and every gradient, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import moe_kernels
from moe_kernels.backends.cuda import launch
from moe_kernels.backends.cuda.operands import operands_problem
from moe_kernels.testing import (
    ExpertInputs,
    assert_close,
    expert_inputs,
    naive_experts,
    random_indices,
    whole_pre_activation,
)

BF16, F16 = torch.bfloat16, torch.float16
GATED = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "gpt_oss")
PLAIN = ("silu", "gelu", "gelu_tanh", "relu", "relu2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Autograd and the emulation share one thread."""
    with torch.autograd.set_multithreading_enabled(False):
        yield


@pytest.fixture(autouse=True)
def nan_in_new_memory() -> Iterator[None]:
    """What torch.empty gives on the CPU is NaN, so that output that is not written, or read too far, shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["wgmma", "mma"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The instruction of the products, on a Hopper, which the emulated device is."""
    monkeypatch.setenv("MOE_KERNELS_CUDA_PRODUCTS", request.param)
    return request.param


def leaves_of(inputs: ExpertInputs) -> ExpertInputs:
    copies = {name: v.detach().clone() for name, v in inputs._asdict().items() if v is not None}
    for name, value in copies.items():
        value.requires_grad_(name != "indices")
    return ExpertInputs(**{name: copies.get(name) for name in inputs._fields})  # type: ignore[arg-type]


def call(inputs: ExpertInputs, **options: Any) -> torch.Tensor:
    x, indices, weights, gate_up, down, gate_up_bias, down_bias = inputs
    biases = {"gate_up_bias": gate_up_bias, "down_bias": down_bias}
    return moe_kernels.fused_experts(x, indices, weights, gate_up, down, **biases, backend="cuda", **options)


def on(device: str, inputs: ExpertInputs) -> ExpertInputs:
    return ExpertInputs(*(None if value is None else value.to(device) for value in inputs))  # type: ignore[arg-type]


def check_experts(inputs: ExpertInputs, dtype: torch.dtype, device: str, **options: Any) -> None:
    cast = leaves_of(on(device, inputs.to(dtype)))
    wide = leaves_of(inputs.to(dtype).to(torch.float64))
    out, want = call(cast, **options), naive_experts(wide, **options)
    assert_close(out.cpu(), want)
    with torch.no_grad():
        assert torch.equal(call(cast, **options), out), "inference and training bits differ"
    torch.manual_seed(1)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad.to(device))
    if want.requires_grad:
        want.backward(grad.double())
    # The gradient of a weight is one sum over H that may cancel: its terms are the measure.
    terms = float(torch.linalg.vector_norm(grad * want.detach()))
    for name, leaf in cast._asdict().items():
        if leaf is not None and name != "indices":
            theirs = getattr(wide, name).grad
            theirs = torch.zeros_like(getattr(wide, name)) if theirs is None else theirs
            assert_close(leaf.grad.cpu(), theirs, dtype, what=name, scale=terms if name == "weights" else 0.0)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("transposed", [False, True], ids=["row-major", "transposed"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])
@pytest.mark.parametrize("T", [11, 70])
def test_gated(T: int, interleaved: bool, transposed: bool, dtype: torch.dtype, products: str, device: str) -> None:
    inputs = expert_inputs(
        T, 4, 2, 136, 72, bias=T == 11, interleaved=interleaved, transposed=transposed, routing="sentinels"
    )
    check_experts(inputs, dtype, device, interleaved=interleaved, transposed=transposed)


@pytest.mark.parametrize("activation", GATED)
def test_gated_activations(activation: str, products: str, device: str) -> None:
    interleaved = activation == "gpt_oss"
    inputs = expert_inputs(9, 3, 2, 24, 16, bias=True, interleaved=interleaved)
    if activation == "gpt_oss":
        # Beyond the clamps.
        inputs = inputs._replace(gate_up=4 * inputs.gate_up)
    check_experts(inputs, BF16, device, activation=activation, interleaved=interleaved)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu2"])
def test_clamped_activations(activation: str, products: str, device: str) -> None:
    inputs = expert_inputs(9, 3, 2, 24, 16)
    check_experts(whole_pre_activation(inputs), BF16, device, activation=activation, limit=2.5)


@pytest.mark.parametrize("activation", PLAIN)
def test_activations_without_a_gate(activation: str, device: str) -> None:
    inputs = expert_inputs(9, 3, 2, 24, 16, gated=False, bias=activation == "relu2")
    check_experts(inputs, F16, device, activation=activation)


@pytest.mark.parametrize("routing", ["skewed", "single"])
def test_routings(routing: str, products: str, device: str) -> None:
    check_experts(expert_inputs(150, 3, 1, 40, 24, routing=routing), BF16, device)


def test_more_stages_than_are_under_way(products: str, device: str) -> None:
    check_experts(expert_inputs(20, 2, 1, 456, 328), BF16, device)


def test_many_experts(products: str, device: str) -> None:
    check_experts(expert_inputs(6, 70, 3, 16, 8, transposed=True), BF16, device, transposed=True)


@pytest.mark.parametrize("T", [0, 1])
def test_few_tokens(T: int, device: str) -> None:
    check_experts(expert_inputs(T, 4, 4, 32, 16), BF16, device)


def test_every_slot_a_sentinel(device: str) -> None:
    inputs = expert_inputs(5, 4, 2, 16, 8, bias=True)
    check_experts(inputs._replace(indices=torch.full_like(inputs.indices, 4)), BF16, device)


def test_a_token_has_the_same_bits_in_every_batch(products: str, device: str) -> None:
    inputs = on(device, expert_inputs(200, 4, 2, 200, 72, bias=True).to(BF16))
    whole = call(inputs)
    for part in (slice(0, 1), slice(3, 17), slice(50, 130)):
        few = inputs._replace(x=inputs.x[part], indices=inputs.indices[part], weights=inputs.weights[part])
        assert torch.equal(call(few), whole[part])


@pytest.mark.parametrize("order", [1, 2], ids=["descending", "shuffled"])
def test_the_order_of_threads_does_not_matter(order: int, set_order: Callable[[int], None], products: str) -> None:
    inputs = expert_inputs(40, 3, 2, 136, 72, bias=True, routing="sentinels").to(BF16)

    def step() -> list[torch.Tensor]:
        leaves = leaves_of(inputs)
        out = call(leaves)
        out.sum().backward()
        return [out.detach(), *(leaf.grad for name, leaf in leaves._asdict().items() if name != "indices")]

    ascending = step()
    set_order(order)
    assert all(torch.equal(a, b) for a, b in zip(step(), ascending, strict=True))


OPTIONS = {
    "rows": {},
    "transposed": {"transposed": True},
    "gather": {"gather": True},
    "scatter": {"scatter": True, "scale": True},
    "everything": {"gather": True, "scatter": True, "bias": True, "scale": True, "base": True, "transposed": True},
}


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("T", [13, 70])
def test_grouped_mm(T: int, options: dict[str, bool], dtype: torch.dtype, products: str, device: str) -> None:
    E, K, H, O = 4, 2, 72, 136
    torch.manual_seed(0)
    plan = moe_kernels.route(random_indices(T, E, K, "sentinels"), E, backend="reference")
    N, transposed = T * K, options.get("transposed", False)

    def draw(wanted: bool, *shape: int, kind: torch.dtype = dtype, scale: float = 1.0) -> torch.Tensor | None:
        return (torch.randn(*shape) * scale).to(device, kind).requires_grad_() if wanted else None

    def has(name: str) -> bool:
        return options.get(name, False)

    leaves = {
        "x": draw(True, T if has("gather") else N, H),
        "w": draw(True, E, *((H, O) if transposed else (O, H)), scale=H**-0.5),
        "bias": draw(has("bias"), E, O),
        "row_scale": draw(has("scale"), N, kind=torch.float32),
        "base": draw(has("base"), T if has("scatter") else N, O),
    }
    plain = {
        "offsets": plan.offsets,
        "transposed": transposed,
        "row_token": plan.row_token if has("gather") else None,
        "slot_row": plan.slot_row if has("scatter") else None,
    }
    wide = {name: None if v is None else v.detach().cpu().double().requires_grad_() for name, v in leaves.items()}
    there = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in plain.items()}
    out = moe_kernels.grouped_mm(**leaves, **there, backend="cuda")
    want = moe_kernels.grouped_mm(**wide, **plain, backend="reference")
    assert_close(out.cpu(), want)
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad.to(device))
    want.backward(grad.double())
    # The gradient of a row's scale is one sum over O that may cancel: its terms are the measure.
    terms = float(torch.linalg.vector_norm(grad.double()) * torch.linalg.vector_norm(wide["w"].detach()))
    for name, leaf in leaves.items():
        if leaf is not None:
            scale = terms if name == "row_scale" else 0.0
            assert_close(leaf.grad.cpu(), wide[name].grad, dtype, what=name, scale=scale)


def test_weights_in_pieces(products: str, device: str) -> None:
    """Strided weights and rows are read as they lie."""
    torch.manual_seed(0)
    storage, rows = torch.randn(3, 48, 40).to(BF16), torch.randn(20, 64).to(BF16)
    w, x, offsets = storage[:, 8:40, :24], rows[:, 8:32], torch.tensor([0, 7, 7, 18], dtype=torch.int32)
    # The views are taken on the device: a copy would close the gaps.
    there = storage.to(device)[:, 8:40, :24], rows.to(device)[:, 8:32], offsets.to(device)
    got = moe_kernels.grouped_mm(there[1], there[0], there[2], backend="cuda")
    assert_close(got.cpu(), moe_kernels.grouped_mm(x.double(), w.double(), offsets, backend="reference"))
    assert not got[18:].any()


def test_gradients_that_are_views(products: str, device: str) -> None:
    """An expanded gradient has strides of 0; a block of columns has rows that begin anywhere."""
    torch.manual_seed(0)
    x64, w64 = torch.randn(9, 24).to(BF16).double(), torch.randn(2, 16, 24).to(BF16).double()
    offsets = torch.tensor([0, 4, 9], dtype=torch.int32)
    row, rows, one = torch.randn(16).to(BF16), torch.randn(9, 33).to(BF16), torch.randn(1).to(BF16)
    for view in (lambda g: g(row).expand(9, 16), lambda g: g(rows)[:, 1:17], lambda g: g(one).expand(9, 16)):
        grads = []
        for kind, where, backend in ((BF16, device, "cuda"), (torch.float64, "cpu", "reference")):
            x, w = (v.clone().to(where, kind).requires_grad_() for v in (x64, w64))
            out = moe_kernels.grouped_mm(x, w, offsets.to(where), backend=backend)
            out.backward(view(lambda v, to=(where, kind): v.to(*to)))
            grads.append((x.grad, w.grad))
        for got, want in zip(*grads, strict=True):
            assert_close(got.cpu(), want)


@pytest.mark.skipif(launch.module_problem() is not None, reason=str(launch.module_problem()))
def test_runs_inside_a_cuda_graph(products: str) -> None:
    inputs = leaves_of(on("cuda", expert_inputs(64, 8, 2, 256, 128, bias=True, routing="sentinels").to(BF16)))
    leaves = [leaf for name, leaf in inputs._asdict().items() if name != "indices"]

    def step() -> tuple[torch.Tensor, ...]:
        out = call(inputs)
        return (out, *torch.autograd.grad(out.sum(), leaves))

    # torch asks for a first run on a side stream.
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        inputs.x.copy_(torch.randn_like(inputs.x))
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize(
    ("x", "w", "expected"),
    [
        (torch.empty(2, 16), torch.empty(2, 8, 16), "takes float16 and bfloat16, got float32"),
        (torch.empty(2, 12, dtype=BF16), torch.empty(2, 8, 12, dtype=BF16), "needs H divisible by 8"),
        (torch.empty(2, 16, dtype=BF16), torch.empty(2, 9, 16, dtype=BF16), "needs both sizes"),
        (torch.empty(2, 16, dtype=BF16), torch.empty(2, 8, 32, dtype=BF16)[:, :, ::2], "lie side by side"),
        (torch.empty(2, 16, dtype=BF16), torch.empty(2, 8, 17, dtype=BF16)[:, :, :16], "multiples of 16 bytes"),
        (torch.empty(2, 16, dtype=BF16), torch.empty(2 * 8 * 16 + 1, dtype=BF16)[1:].view(2, 8, 16), "16 bytes"),
    ],
    ids=["dtype", "H", "O", "strides", "rows", "address"],
)
def test_reasons(x: torch.Tensor, w: torch.Tensor, expected: str) -> None:
    assert expected in str(operands_problem(x, w))
