"""64-bit ARM: the kernels cross-compiled and run under an emulator, where both are to be found.

The compiler is `aarch64-linux-gnu-g++`, or the PyPI package `ziglang`; the emulator is QEMU's user mode.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")


def _compiler() -> list[str] | None:
    if gcc := shutil.which("aarch64-linux-gnu-g++"):
        return [gcc]
    if importlib.util.find_spec("ziglang"):
        # Its default sanitizer would only slow the emulation down.
        return [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-fno-sanitize=undefined"]
    return None


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = _compiler()
    if compiler is None or EMULATOR is None:
        pytest.skip(f"compiler for aarch64: {compiler and compiler[0]}, emulator: {EMULATOR}")
    target = tmp_path_factory.mktemp("aarch64") / "check"
    sources = [*CSRC.glob("common/*.cpp"), *CSRC.glob("cpu/*.cpp")]
    sources += [CSRC / "cpu/isa/kernels_neon.cpp", CSRC / "cpu/isa/kernels_scalar.cpp", HERE / "foreign_isa.cpp"]
    flags = ["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-static", "-pthread"]
    flags += ["-DMOE_KERNELS_HAVE_NEON=1", "-DMOE_KERNELS_HAVE_SCALAR=1", f"-I{CSRC}"]
    subprocess.run([*compiler, *flags, *map(str, sources), "-o", str(target)], check=True, capture_output=True)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["neon", "scalar"])
def test_aarch64(program, isa):
    environment = {**os.environ, "MOE_KERNELS_ISA": isa}
    done = subprocess.run([str(EMULATOR), str(program)], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [isa, "ok"], done.stdout + done.stderr
