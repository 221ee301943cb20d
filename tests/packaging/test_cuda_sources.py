"""The CUDA sources compile without warnings, and their kernels keep to registers. Needs nvcc, not a GPU."""

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
ARCHITECTURES = ("sm_80", "sm_90a")
LOCAL_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
# Files whose kernels are compiled elsewhere.
HOST_ONLY = {"experts", "tensor_map"}
# What nvcc hands to the host compiler still has the device's pragmas.
WARNINGS = ("-Xcompiler=-Wall,-Wno-unknown-pragmas", "-Werror=all-warnings")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc was not found")


def nvcc(*arguments: object) -> str:
    command = [str(NVCC), "-std=c++17", f"-I{ROOT / 'csrc'}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_use_no_local_memory(source: Path, architecture: str, tmp_path: Path) -> None:
    number = architecture.removeprefix("sm_")
    target = f"-gencode=arch=compute_{number},code={architecture}"
    said = nvcc("-O3", target, "-Xptxas=-v", *WARNINGS, "-c", source, "-o", tmp_path / "kernels.o")
    assert "warning" not in said.lower(), said
    # So ptxas says, as mere information, that it waits after each wgmma or lets setmaxnreg be.
    assert "Potential Performance Loss" not in said and "setmaxnreg ignored" not in said, said
    kernels = LOCAL_MEMORY.findall(said)
    assert bool(kernels) != (source.stem in HOST_ONLY), f"ptxas reported no kernel:\n{said}"
    assert all(kernel == ("0", "0", "0") for kernel in kernels), said


def test_threads_on_the_host_agree_with_plain_loops(tmp_path: Path) -> None:
    program = tmp_path / "permute_host"
    nvcc("-O1", "-arch=sm_80", Path(__file__).with_name("permute_host.cu"), "-o", program)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
