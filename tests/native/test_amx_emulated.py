"""The AMX kernels where there may be no AMX: built on emulated tiles, which follow the instructions' definition.

The emulation is exact about what is multiplied and in which order, and says nothing about speed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from moe_kernels.native import native

ROOT = Path(__file__).resolve().parents[2]
OPS = ("fused_experts", "grouped_mm", "quantized", "quantized_batch_invariance", "batch_invariance", "grouped_lora")
# Backends other than `cpu` run elsewhere, and so does what the kernels have no part in.
CHOICE = "not reference and not compile and not opcheck"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose native core has emulated tiles."""
    module, reason = native()
    if module is None:
        pytest.skip(str(reason))
    features = module.cpu_features()
    if not (features["avx512_bf16"] and features["avx512_vnni"]):
        pytest.skip("the kernels around the tiles need AVX512-BF16 and AVX512-VNNI")
    if not shutil.which("cmake") or not shutil.which("ninja") or not importlib.util.find_spec("pybind11"):
        pytest.skip("building needs cmake, ninja and pybind11")
    build = tmp_path_factory.mktemp("build")
    ask = [sys.executable, "-m", "pybind11", "--cmakedir"]
    folder = subprocess.run(ask, capture_output=True, text=True, check=True)
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DMOE_EMULATE_AMX=ON"]
    configure += [f"-Dpybind11_DIR={folder.stdout.strip()}", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (configure, ["cmake", "--build", str(build)]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    copy = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "moe_kernels", copy / "moe_kernels", ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    for library in build.glob("_C*"):
        shutil.copy(library, copy / "moe_kernels")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_ops(package, op):
    path = os.pathsep.join([str(package), str(ROOT / "python")])
    environment = {**os.environ, "MOE_KERNELS_ISA": "amx", "PYTHONPATH": path}
    # Not from the checkout's root, whose own package would come first.
    tests = str(ROOT / "tests" / "ops" / f"test_{op}.py")
    check = "import moe_kernels.native as n; assert n.core().isa() == 'amx'"
    seen = subprocess.run([sys.executable, "-c", check], env=environment, cwd=package, capture_output=True, text=True)
    assert seen.returncode == 0, seen.stderr
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*run, "-k", CHOICE, tests], env=environment, cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
