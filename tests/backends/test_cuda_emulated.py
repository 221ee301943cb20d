"""The emulation of a CUDA block, and the row kernels of the CUDA backend run by it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import moe_kernels
from moe_kernels.testing import assert_close, random_indices

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
SHAPES = [(0, 4, 2, 16), (1, 8, 2, 96), (63, 8, 3, 37)]


def test_the_emulation(emulation: ModuleType, tmp_path: Path) -> None:
    program = emulation.build_program(Path(__file__).with_name("emulated_block.cpp"), tmp_path)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("shape", SHAPES, ids="T{0[0]}-E{0[1]}-K{0[2]}-H{0[3]}".format)
@pytest.mark.parametrize("routing", ["uniform", "sentinels"])
@pytest.mark.parametrize("weighted", [True, False], ids=["weights", "ones"])
def test_rows(emulated: Any, shape: tuple[int, ...], dtype: torch.dtype, routing: str, weighted: bool) -> None:
    T, E, K, H = shape
    generator = torch.Generator().manual_seed(0)
    x64 = torch.randn(T, H, generator=generator, dtype=torch.float64).to(dtype).double()
    weights64 = torch.rand(T, K, generator=generator, dtype=torch.float64).float().double()
    grad64 = torch.randn(T, H, generator=generator, dtype=torch.float64).to(dtype).double()
    plan = moe_kernels.route(random_indices(T, E, K, routing), E)

    def run(kind: torch.dtype, backend: str) -> list[torch.Tensor]:
        x = x64.to(kind).requires_grad_()
        weights = weights64.to(kind if kind == torch.float64 else torch.float32).requires_grad_()
        rows = moe_kernels.permute(x, plan, backend=backend)
        out = moe_kernels.unpermute(rows, plan, weights if weighted else None, backend=backend)
        out.backward(grad64.to(kind))
        assert x.grad is not None
        results = [rows, out, x.grad]
        return [*results, weights.grad] if weighted and weights.grad is not None else results

    names = ("rows", "out", "x.grad", "weights.grad")
    for name, got, want in zip(names, run(dtype, "cuda"), run(torch.float64, "reference"), strict=False):
        assert_close(got, want, dtype, name)
