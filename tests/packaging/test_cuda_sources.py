"""The CUDA sources compile without spills, and what their threads do is right. Needs nvcc, not a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
NVCC = shutil.which(os.environ.get("CUDACXX") or "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
# Files whose kernels are compiled elsewhere.
HOST_ONLY = {"experts", "tensor_map"}
STACKS = re.compile(r"(\d+) bytes stack frame")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found")


def nvcc(*arguments: object) -> str:
    command = [str(NVCC), "-std=c++17", f"-I{ROOT / 'csrc'}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_kernels_compile_without_spills(source: Path, architecture: str, tmp_path: Path) -> None:
    said = nvcc("-O3", f"-arch={architecture}", "-Xptxas=-v", "-c", source, "-o", tmp_path / "kernels.o")
    spills = SPILLS.findall(said)
    assert bool(spills) != (source.stem in HOST_ONLY), f"ptxas reported no kernel:\n{said}"
    assert all(pair == ("0", "0") for pair in spills), said
    assert all(size == "0" for size in STACKS.findall(said)), said


def test_threads_on_the_host_agree_with_plain_loops(tmp_path: Path) -> None:
    program = tmp_path / "permute_host"
    nvcc("-O1", "-arch=sm_80", Path(__file__).with_name("permute_host.cu"), "-o", program)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
