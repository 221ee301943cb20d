"""benchmarks/gpu/compile_tests.py: the kernels of tests that cannot run here, compiled for a GPU that is not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[2]
H100 = {
    "target": ["cuda", 90, 32],
    "device": {"architecture": 90, "processors": 132, "shared_bytes": 232448, "amd": False},
}


def test_launches_compile_for_the_gpu_named(tmp_path: Path) -> None:
    environment = os.environ | {"MOE_COMPILE_FOR": json.dumps(H100), "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "python", ROOT / "benchmarks")))
    tests = ["tests/ops/test_permute.py", "-k", "test_unpermute and triton and bfloat16 and weighted and 63-8-8"]
    command = [sys.executable, "-m", "pytest", "-p", "gpu.compile_tests", "-p", "no:cacheprovider", "-v", *tests]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    # Of a GPU's tests, all that the interpreter has no time for; what they say is of no interest.
    assert "63-8-8-triton-bfloat16" in done.stdout, done.stdout
    kernels = {path.stem for path in tmp_path.rglob("*.cubin")}
    assert "_unpermute_kernel" in kernels, done.stdout
    assert all("sm_90" in path.read_text() for path in tmp_path.rglob("*.ptx"))
