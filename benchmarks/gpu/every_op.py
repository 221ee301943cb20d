"""Runs every op of each backend forward and backward on small shapes, and compares with the reference in float64.

For compute-sanitizer, which a test suite would take hours under; without it, a quick look at what works:

    python benchmarks/gpu/every_op.py [--device cuda] [--backends triton,cuda] [--ops route,permute]

Exit status: 0; 1 if a result is wrong or an op failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import moe_kernels as moe  # noqa: E402
from gpu.arms import ours  # noqa: E402
from gpu.timing import usable  # noqa: E402
from moe_kernels.quantized_weights import quantize_int8, quantize_nf4  # noqa: E402
from moe_kernels.testing import ExpertInputs, assert_close, expert_inputs  # noqa: E402

# T, E, K, H, I: one token; odd sizes; several tiles of rows in one expert; sizes that are multiples of 64.
SHAPES = ((1, 4, 2, 64, 64), (37, 5, 3, 72, 40), (300, 4, 2, 128, 192))
QUANTIZED = ((1, 4, 2, 64, 64), (70, 4, 2, 128, 192))
Leaves = Sequence[Tensor]


def _grads(out: Tensor, leaves: Leaves) -> list[Tensor]:
    torch.manual_seed(9)
    grad = torch.randn(out.shape, dtype=torch.float64).to(out.device, out.dtype)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def _leaf(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype).detach().requires_grad_()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _place(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype) -> ExpertInputs:
    x, indices, weights, gate_up, down, *_ = inputs
    x, gate_up, down = (_leaf(tensor, device, dtype) for tensor in (x, gate_up, down))
    return ExpertInputs(x, indices.to(device), _leaf(weights, device, _wide(dtype)), gate_up, down, None, None)


def fused_experts(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    given = _place(inputs, device, dtype)
    out = moe.fused_experts(*given[:5], backend=backend)
    return _grads(out, (given.x, given.weights, given.gate_up, given.down))


def grouped_mm(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    given = _place(inputs, device, dtype)
    plan = moe.route(given.indices, len(given.down), backend="reference")
    rows = given.x.detach()[plan.row_token.long()].requires_grad_()
    return _grads(moe.grouped_mm(rows, given.gate_up, plan.offsets, backend=backend), (rows, given.gate_up))


def permute(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    given = _place(inputs, device, dtype)
    plan = moe.route(given.indices, len(given.down), backend="reference")
    return _grads(moe.permute(given.x, plan, backend=backend), (given.x,))


def unpermute(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    given = _place(inputs, device, dtype)
    plan = moe.route(given.indices, len(given.down), backend="reference")
    rows = given.x.detach()[plan.row_token.long()].requires_grad_()
    return _grads(moe.unpermute(rows, plan, given.weights, backend=backend), (rows, given.weights))


def route(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    plan = moe.route(inputs.indices.to(device), len(inputs.down), backend=backend)
    return [tensor.double() for tensor in plan]


def topk_gating(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    E, K = len(inputs.down), inputs.indices.shape[1]
    torch.manual_seed(8)
    # Logits that bfloat16 holds exactly and none twice in a row, so that the choice is the same in every dtype.
    ranks = torch.rand(len(inputs.x), E).argsort(1)
    found: list[Tensor] = []
    for score in ("softmax", "sigmoid"):
        logits = _leaf(ranks / 8 - 1, device, dtype)
        got = moe.topk_gating(logits, K, score=score, renormalize=True, backend=backend)
        total = got.weights.square().sum() + got.mean_probability.square().sum() + got.z + got.entropy
        found += [got.indices.double(), got.weights, got.counts, *torch.autograd.grad(total, (logits,))]
    return found


def grouped_lora(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
    G, R, H = len(inputs.down), 8, inputs.x.shape[1]
    generator = torch.Generator().manual_seed(7)
    sizes = (G, R, H), (G, H, R)
    draws = (torch.randn(*size, generator=generator, dtype=torch.float64) * size[-1] ** -0.5 for size in sizes)
    A, B = (_leaf(value, device, dtype) for value in draws)
    x, groups = _leaf(inputs.x, device, dtype), inputs.indices[:, 0].contiguous().to(device)
    return _grads(moe.grouped_lora(x, A, B, groups, 2.0, backend=backend), (x, A, B))


def _quantized(pack: Callable[[Tensor], Any]) -> Callable[..., list[Tensor]]:
    def run(inputs: ExpertInputs, device: torch.device, dtype: torch.dtype, backend: str) -> list[Tensor]:
        given = _place(inputs, device, dtype)
        packed = [pack(weight.float()).to(device) for weight in (inputs.gate_up, inputs.down)]
        out = moe.fused_experts(given.x, given.indices, given.weights, *packed, backend=backend)
        return _grads(out, (given.x, given.weights))

    return run


OPS: dict[str, Callable[..., list[Tensor]]] = {
    "topk_gating": topk_gating,
    "route": route,
    "permute": permute,
    "unpermute": unpermute,
    "grouped_mm": grouped_mm,
    "fused_experts": fused_experts,
    "grouped_lora": grouped_lora,
    "fused_experts nf4": _quantized(quantize_nf4),
    "fused_experts int8": _quantized(quantize_int8),
}


def run_one(name: str, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """Return what came of an op, in a few words; "ok" if all is well."""
    quantized = name.endswith(("nf4", "int8"))
    for shape in QUANTIZED if quantized else SHAPES:
        for routing in ("uniform", "sentinels"):
            inputs = expert_inputs(*shape, routing=routing)
            rounded = inputs.to(dtype).to(torch.float64)
            try:
                got = OPS[name](rounded, device, dtype, backend)
            except moe.BackendUnavailable as error:
                return f"not there: {error}"
            wide = torch.float64
            want = OPS[name](rounded, torch.device("cpu"), wide, "reference")
            for i, (ours_, theirs) in enumerate(zip(got, want, strict=True)):
                integer = ours_.dtype == torch.float64 and dtype != torch.float64
                what = f"T={shape[0]}, {routing}, {'forward' if i == 0 else f'result {i}'}"
                assert_close(ours_.cpu(), theirs, torch.float64 if integer else dtype, what, scale=1e-3)
    return "ok"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--backends", help="default: those for the device")
    parser.add_argument("--ops", help=f"some of {', '.join(OPS)}")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--done", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--bad", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device", file=sys.stderr)
        return 2
    backends = options.backends.split(",") if options.backends else ours(device)
    ops = options.ops.split(",") if options.ops else list(OPS)
    cases = list(itertools.product(backends, ops, options.dtypes.split(",")))
    bad = options.bad
    for number, (backend, name, dtype) in enumerate(cases[options.done :], options.done + 1):
        # Told before, so that a hang has a name.
        print(f"{backend} {name} {dtype}: ", end="", flush=True)
        broken = False
        try:
            said = run_one(name, backend, getattr(torch, dtype), device)
        except Exception as error:
            # Whatever an op raises is told, and the next one runs.
            bad += 1
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            broken = not usable(device)
        print(said, flush=True)
        if broken:
            # Nothing works in this process any more: a fresh one goes on.
            rest = [*sys.argv, "--done", str(number), "--bad", str(bad)]
            os.execv(sys.executable, [sys.executable, *rest])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
