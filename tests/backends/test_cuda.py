"""The CUDA backend: its reasons where it cannot run, its results where it can."""

from __future__ import annotations

import threading

import pytest
import torch

import moe_kernels
from moe_kernels import preferences
from moe_kernels.backends import cuda
from moe_kernels.backends.cuda import launch
from moe_kernels.testing import assert_close, random_indices

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# (T, E, K, H): one token; odd sizes; vectors of 16 bytes and several blocks a row.
SHAPES = [(0, 4, 2, 16), (1, 8, 2, 96), (63, 8, 3, 37), (1000, 64, 8, 2056)]

on_gpu = pytest.mark.skipif(launch.module_problem() is not None, reason=str(launch.module_problem()))


def test_used_only_when_asked_for() -> None:
    order = preferences.UNMEASURED
    assert order.index("cuda") > order.index("reference")
    assert moe_kernels.registry.choose("permute", None, torch.empty(1, 1)) != "cuda"


def test_reason_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert str(cuda.supports("permute", torch.empty(1, 1))).startswith("no CUDA device")
    with pytest.raises(moe_kernels.BackendUnavailable, match="no CUDA device"):
        plan = moe_kernels.route(torch.zeros(1, 1, dtype=torch.int32), 1)
        moe_kernels.permute(torch.zeros(1, 4), plan, backend="cuda")


@pytest.mark.parametrize(
    ("op", "tensor", "expected"),
    [
        ("fused_experts_quantized", torch.empty(1), "fused_experts_quantized has no CUDA kernel"),
        ("permute", torch.empty(1), "takes CUDA tensors, got one on cpu"),
    ],
    ids=["op", "device"],
)
def test_reason_with_a_module(op: str, tensor: torch.Tensor, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "module_problem", lambda: None)
    assert str(cuda.supports(op, tensor)).startswith(expected)


@on_gpu
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-E{}-K{}-H{}".format(*s))
@pytest.mark.parametrize("routing", ["uniform", "sentinels"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "ones"])
def test_agrees_with_float64(
    shape: tuple[int, int, int, int], dtype: torch.dtype, routing: str, weighted: bool
) -> None:
    T, E, K, H = shape
    generator = torch.Generator().manual_seed(0)
    x64 = torch.randn(T, H, generator=generator, dtype=torch.float64).to(dtype).double()
    weights64 = torch.rand(T, K, generator=generator, dtype=torch.float64).float().double()
    grad64 = torch.randn(T, H, generator=generator, dtype=torch.float64).to(dtype).double()
    indices = random_indices(T, E, K, routing)

    def run(device: str, kind: torch.dtype, backend: str) -> list[torch.Tensor]:
        plan = moe_kernels.route(indices.to(device), E)
        x = x64.to(device, kind).requires_grad_()
        weights = weights64.to(device, kind if kind == torch.float64 else torch.float32).requires_grad_()
        rows = moe_kernels.permute(x, plan, backend=backend)
        out = moe_kernels.unpermute(rows, plan, weights if weighted else None, backend=backend)
        out.backward(grad64.to(device, kind))
        assert x.grad is not None
        results = [rows, out, x.grad]
        return [*results, weights.grad] if weighted and weights.grad is not None else results

    for name, got, want in zip(
        ("rows", "out", "x.grad", "weights.grad"),
        run("cuda", dtype, "cuda"),
        run("cpu", torch.float64, "reference"),
        strict=False,
    ):
        assert_close(got.cpu(), want, dtype, name)


@on_gpu
def test_runs_inside_a_cuda_graph() -> None:
    plan = moe_kernels.route(random_indices(64, 8, 2).cuda(), 8)
    x = torch.randn(64, 96, device="cuda")

    def step() -> torch.Tensor:
        return moe_kernels.unpermute(moe_kernels.permute(x, plan, backend="cuda"), plan, backend="cuda")

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    x.copy_(torch.randn(64, 96, device="cuda"))
    graph.replay()
    assert torch.equal(out, step())


@on_gpu
def test_the_first_work_of_another_thread() -> None:
    """A tensor map is made by the driver, which refuses it to a thread without a context."""
    plan = moe_kernels.route(random_indices(200, 4, 2).cuda(), 4)
    x, w = (torch.randn(*shape).to("cuda", torch.bfloat16) for shape in ((400, 72), (4, 136, 72)))
    found: list[torch.Tensor] = []

    def multiply() -> None:
        with torch.no_grad():
            found.append(moe_kernels.grouped_mm(x, w, plan.offsets, backend="cuda"))

    multiply()
    other = threading.Thread(target=multiply)
    other.start()
    other.join()
    torch.cuda.synchronize()
    assert len(found) == 2
    assert torch.equal(*found)
