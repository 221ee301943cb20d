"""Installing without native code: what is built, what is said, and that the package works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Build the distribution into a folder, as pip does before it packs a wheel."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOE_KERNELS_")}
    command = [sys.executable, "setup.py", "build", f"--build-base={folder / 'base'}", f"--build-lib={folder / 'lib'}"]
    return subprocess.run(command, cwd=ROOT, env={**environment, **variables}, capture_output=True, text=True)


def record_of(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "lib" / "moe_kernels" / "_build.json").read_text())


@pytest.fixture
def broken_compiler(tmp_path: Path) -> str:
    script = tmp_path / "broken-compiler"
    script.write_text(
        "#!/bin/sh\necho 'probe.cpp:1:10: fatal error: Python.h: No such file or directory' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    return str(script)


def test_native_off_builds_pure_python(tmp_path: Path) -> None:
    done = build(tmp_path, MOE_KERNELS_NATIVE="off")
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["native"] == {"built": False, "reason": "MOE_KERNELS_NATIVE=off when the package was installed"}
    assert record["cuda"]["built"] is False
    assert not [*(tmp_path / "lib").rglob("*.so")]
    assert (tmp_path / "lib" / "specmoe" / "__init__.py").is_file()


def test_missing_compiler_is_said_once_and_recorded(tmp_path: Path) -> None:
    done = build(tmp_path, CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stderr
    reason = "no working C++17 compiler: /nonexistent/c++: not found"
    assert done.stderr.count("moe-kernels installs as pure Python") == 1
    assert done.stderr.count(reason) == 1
    assert record_of(tmp_path)["native"] == {"built": False, "reason": reason}


def test_compiler_that_fails_is_quoted(tmp_path: Path, broken_compiler: str) -> None:
    done = build(tmp_path, CXX=broken_compiler)
    assert done.returncode == 0, done.stderr
    reason = record_of(tmp_path)["native"]["reason"]
    assert str(reason).endswith("fatal error: Python.h: No such file or directory")


def test_pure_python_package_computes_and_says_why(tmp_path: Path) -> None:
    assert build(tmp_path, MOE_KERNELS_NATIVE="off").returncode == 0
    # Without the finder of an editable installation, which would add that one's compiled modules to this package.
    program = """
import json, sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
import torch, moe_kernels
out = moe_kernels.MoELayer(8, 16, 4, 2)(torch.randn(3, 8))
from moe_kernels.build_record import reason_not_built
print(json.dumps([moe_kernels.__file__, list(out.shape), moe_kernels.available_backends(), reason_not_built("native")]))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    path, shape, backends, reason = json.loads(done.stdout)
    assert Path(path).is_relative_to(tmp_path)
    assert shape == [3, 8]
    assert backends["reference"] is None
    assert backends["cpu"] is not None
    assert reason == "MOE_KERNELS_NATIVE=off when the package was installed"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MOE_KERNELS_NATIVE", "yes", "MOE_KERNELS_NATIVE: expected one of auto, off, got 'yes'"),
        ("MOE_KERNELS_CUDA", "12.8", "MOE_KERNELS_CUDA: expected one of auto, on, off, got '12.8'"),
    ],
)
def test_unknown_setting_lists_the_valid_ones(tmp_path: Path, name: str, value: str, message: str) -> None:
    done = build(tmp_path, **{name: value})
    assert done.returncode != 0
    assert done.stderr.strip() == f"moe-kernels: {message}"
    assert not (tmp_path / "lib").exists()


def test_cuda_on_without_native_core_is_refused(tmp_path: Path) -> None:
    done = build(tmp_path, MOE_KERNELS_NATIVE="off", MOE_KERNELS_CUDA="on")
    assert done.returncode != 0
    assert "MOE_KERNELS_CUDA=on, but the native core is not built: MOE_KERNELS_NATIVE=off" in done.stderr
