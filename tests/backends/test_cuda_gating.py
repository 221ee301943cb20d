"""topk_gating of the CUDA backend against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import moe_kernels
from moe_kernels.backends.cuda import launch
from moe_kernels.testing import assert_close

inf, nan = float("inf"), float("nan")
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
on_gpu = pytest.mark.skipif(launch.module_problem() is not None, reason=str(launch.module_problem()))
NAMES = ("weights", "mean_probability", "z", "entropy")


def run(
    device: str, logits: Tensor, backend: str, k: int, gradients: list[Tensor], **options: Any
) -> tuple[Any, list[Tensor]]:
    """Return the outputs, and the gradients of the logits and of the noise, on the CPU."""
    logits = logits.to(device).detach().requires_grad_()
    here = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in options.items()}
    noise = here.pop("noise", None)
    noise = None if noise is None else noise.detach().requires_grad_()
    got = moe_kernels.topk_gating(logits, k, noise=noise, backend=backend, **here)
    outputs = [getattr(got, name) for name in NAMES]
    torch.autograd.backward(outputs, [g.to(device, out.dtype) for g, out in zip(gradients, outputs, strict=True)])
    assert logits.grad is not None
    grads = [logits.grad.cpu(), *([] if noise is None or noise.grad is None else [noise.grad.cpu()])]
    return type(got)(*(out.cpu() for out in got)), grads


def check(device: str, logits: Tensor, k: int, wide: bool = True, **options: Any) -> None:
    """Values against the reference in float64 if `wide`, the choice against the reference in the same dtype."""
    T, E = logits.shape
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(shape, generator=generator) for shape in ((T, k), (E,), (), ())]
    got, got_grads = run(device, logits, "cuda", k, gradients, **options)
    same = moe_kernels.topk_gating(logits, k, backend="reference", **options)
    in_float64 = {
        name: value.double() if isinstance(value, Tensor) and value.dtype != torch.bool else value
        for name, value in options.items()
    }
    want, want_grads = run("cpu", logits.double(), "reference", k, gradients, **in_float64)
    # Rounding may decide about a choice, and what underflows in float32 does not in float64.
    if not wide or not torch.equal(want.indices, same.indices):
        want, want_grads = run("cpu", logits.float(), "reference", k, gradients, **options)
    assert torch.equal(got.indices, same.indices)
    assert torch.equal(got.counts, same.counts)
    for name in NAMES:
        assert_close(getattr(got, name), getattr(want, name), torch.float32, name, scale=0.0 if wide else 1.0)
    for name, a, b in zip(("logits.grad", "noise.grad"), got_grads, want_grads, strict=False):
        # The noise has the logits' gradient, rounded as that is.
        assert_close(a, b, logits.dtype, name, scale=0.0 if wide else 1.0)


def random_logits(T: int, E: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(T, E, generator=generator) * 2).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-is", "renormalized"])
@pytest.mark.parametrize(
    ("T", "E", "K"),
    [(0, 8, 2), (1, 1, 1), (1, 8, 8), (3, 60, 8), (63, 8, 2), (17, 64, 1), (300, 64, 2), (63, 128, 8), (63, 256, 8)]
    + [(3, 60, 60), (3, 256, 256), (2, 300, 8), (2, 1024, 3)],
    ids=lambda n: str(n),
)
def test_shapes(device: str, T: int, E: int, K: int, score: str, renormalize: bool, dtype: torch.dtype) -> None:
    check(device, random_logits(T, E, dtype), K, score=score, renormalize=renormalize, scale=1.5)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-is", "renormalized"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2), (12, 3), (60, 7), (10, 1)], ids=str)
@pytest.mark.parametrize("E", [60, 960])
def test_options(device: str, score: str, renormalize: bool, biased: bool, groups: tuple[int, int], E: int) -> None:
    T = 31 if E == 60 else 3
    generator = torch.Generator().manual_seed(2)
    bias = torch.randn(E, generator=generator) * 0.2 if biased else None
    mask = torch.rand(T, generator=generator) < 0.7
    noise = torch.randn(T, E, generator=generator).to(torch.float16)
    options: dict[str, Any] = {"bias": bias, "mask": mask, "noise": noise}
    check(
        device,
        random_logits(T, E, torch.bfloat16),
        6,
        score=score,
        renormalize=renormalize,
        scale=2.5,
        num_groups=groups[0],
        top_groups=groups[1],
        **{name: value for name, value in options.items() if value is not None},
    )


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("renormalize", [False, True], ids=["as-is", "renormalized"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("groups", [(1, 1), (4, 2)], ids=str)
def test_special_rows(device: str, score: str, renormalize: bool, biased: bool, groups: tuple[int, int]) -> None:
    """NaN, infinities and ties, each row by itself so that its NaN is in no other row's statistics."""
    rows = torch.zeros(11, 40)
    rows[0, 7] = nan
    rows[1] = -inf
    rows[2, 3:] = -inf
    rows[3, 39] = -200.0
    rows[3, :39] = -inf
    rows[4, [5, 20]] = inf
    rows[5, 11] = inf
    rows[5, 12:] = -inf
    rows[6, [0, 1]] = torch.tensor([inf, nan])
    rows[7] = torch.arange(40) % 5
    rows[8, ::2] = -0.0
    rows[9] = torch.linspace(-1e4, 1e4, 40)
    bias = torch.linspace(0.5, -0.5, 40) if biased else None
    for row in rows:
        check(
            device,
            row[None],
            4,
            wide=False,
            score=score,
            renormalize=renormalize,
            num_groups=groups[0],
            top_groups=groups[1],
            **({} if bias is None else {"bias": bias}),
        )


def test_masked_and_broken_rows(device: str) -> None:
    logits = random_logits(20, 40, torch.float32)
    logits[3, 1] = nan
    mask = torch.ones(20, dtype=torch.bool)
    mask[3] = False
    for options in ({"score": "softmax", "renormalize": True}, {"score": "sigmoid", "renormalize": False}):
        check(device, logits, 3, mask=mask, **options)
        check(device, logits, 3, mask=torch.zeros(20, dtype=torch.bool), **options)
        check(device, logits, 3, scale=0.0, mask=mask, **options)


def test_strides_and_wide_types(device: str) -> None:
    logits = random_logits(40, 70, torch.bfloat16).to(device)
    noise = torch.randn(40, 128, dtype=torch.float64).to(device)[:, ::2]
    bias = torch.randn(128, dtype=torch.float16).to(device)[::2]
    mask = (torch.arange(80) % 3 > 0).to(device)[::2]
    for view in (logits[:, 3:67], logits[:, :64].t().contiguous().t()):
        got = moe_kernels.topk_gating(view, 5, bias=bias, noise=noise, mask=mask, backend="cuda")
        copied = view.contiguous(), noise.contiguous(), bias.contiguous(), mask.contiguous()
        want = moe_kernels.topk_gating(copied[0], 5, bias=copied[2], noise=copied[1], mask=copied[3], backend="cuda")
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        same = moe_kernels.topk_gating(view, 5, bias=bias, noise=noise, mask=mask, backend="reference")
        assert torch.equal(got.indices, same.indices)
        assert_close(got.weights, same.weights)


OPTIONS: dict[str, Any] = {"num_groups": 4, "top_groups": 2, "renormalize": True}


def test_all_orders_of_threads_give_the_same_bits(set_order: Callable[[int], None]) -> None:
    gradients = [torch.ones(300, 4), torch.linspace(0, 1, 60), torch.ones(()), torch.ones(())]
    results = []
    for order in range(3):
        set_order(order)
        logits, mask = random_logits(300, 60, torch.bfloat16), torch.arange(300) % 5 > 0
        outputs, grads = run("cpu", logits, "cuda", 4, gradients, mask=mask, **OPTIONS)
        results.append([*outputs, *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_token_does_not_depend_on_the_others(device: str) -> None:
    logits = random_logits(300, 60, torch.bfloat16).to(device)
    together = moe_kernels.topk_gating(logits, 4, backend="cuda", **OPTIONS)
    for token in (0, 1, 299):
        alone = moe_kernels.topk_gating(logits[token : token + 1], 4, backend="cuda", **OPTIONS)
        assert torch.equal(alone.weights[0], together.weights[token])
        assert torch.equal(alone.indices[0], together.indices[token])


def test_too_many_experts(device: str) -> None:
    with pytest.raises(ValueError, match="topk_gating: logits: expected at most 1024 experts, got 1025"):
        moe_kernels.topk_gating(torch.zeros(1, 1025, device=device), 1, backend="cuda")


def test_several_tokens_a_warp(device: str) -> None:
    check(device, random_logits(4300, 8, torch.float32), 2, mask=torch.arange(4300) % 7 > 0)


@on_gpu
@pytest.mark.parametrize(("T", "E", "K"), [(4096, 256, 8), (32768, 64, 8), (20000, 60, 4)], ids=str)
def test_many_tokens(T: int, E: int, K: int) -> None:
    check("cuda", random_logits(T, E, torch.bfloat16), K, score="sigmoid", bias=torch.randn(E) * 0.1, renormalize=True)
    check("cuda", random_logits(T, E, torch.bfloat16), K, renormalize=True, mask=torch.rand(T) < 0.9)


@on_gpu
def test_inside_a_cuda_graph_and_twice_alike() -> None:
    logits = random_logits(3000, 128, torch.bfloat16).cuda()
    moe_kernels.topk_gating(logits, 8, backend="cuda", **OPTIONS)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = moe_kernels.topk_gating(logits, 8, backend="cuda", **OPTIONS)
    logits.copy_(random_logits(3000, 128, torch.bfloat16, seed=1))
    graph.replay()
    again = moe_kernels.topk_gating(logits, 8, backend="cuda", **OPTIONS)
    assert all(torch.equal(a, b) for a, b in zip(captured, again, strict=True))
