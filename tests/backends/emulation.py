"""Builds csrc/cuda for the CPU: `moe_kernels._cuda` with every kernel run by csrc/cuda/emulate.

Needs a C++ compiler and the headers of the CUDA toolkit, no GPU and no nvcc run.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
CXX = shutil.which(os.environ.get("CXX", "").strip() or "c++")


@functools.cache
def cuda_headers() -> Path | None:
    """Return the include folder of the nvcc that is found, or None."""
    nvcc = shutil.which(os.environ.get("CUDACXX") or "nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        return None
    # nvcc names its own folders; /usr/bin/nvcc may be a script that starts another one.
    said = subprocess.run([nvcc, "-v", "--dryrun", "-x", "cu", "-c", "none.cu"], capture_output=True, text=True).stderr
    top = next((line.split("=", 1)[1].strip() for line in said.splitlines() if line.startswith("#$ TOP=")), "")
    folders = [Path(top, "include"), *Path(top).glob("targets/*/include")]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").exists()), None)


def why_not() -> str | None:
    """Return None if the emulation can be built, else the reason."""
    if CXX is None:
        return "no C++ compiler was found"
    return None if cuda_headers() else "the headers of the CUDA toolkit were not found"


def _run(*command: object) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}{done.stderr}"
    assert "warning" not in done.stderr, done.stderr


def _compile(source: Path, folder: Path) -> Path:
    import pybind11

    made = folder / f"{source.name}.o"
    includes = [f"-I{ROOT / 'csrc'}", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    options = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-unknown-pragmas", "-DMOE_EMULATE"]
    _run(CXX, *options, *includes, "-isystem", cuda_headers(), "-x", "c++", "-c", source, "-o", made)
    return made


def _compile_all(sources: list[Path], folder: Path) -> list[Path]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: _compile(source, folder), sources))


def build_module(folder: Path) -> Path:
    """Build `_cuda` in a folder and return its file."""
    # The long ones first.
    kernels = sorted(CUDA.glob("*.cu"), key=lambda path: -path.stat().st_size)
    objects = _compile_all([*kernels, CUDA / "bindings.cpp", *sorted((CUDA / "emulate").glob("*.cpp"))], folder)
    made = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    _run(CXX, "-shared", *objects, "-o", made)
    return made


def build_program(source: Path, folder: Path) -> Path:
    """Build a program from one file that has kernels, and return its file."""
    objects = _compile_all([source, *sorted((CUDA / "emulate").glob("*.cpp"))], folder)
    made = folder / source.stem
    _run(CXX, *objects, "-o", made)
    return made
