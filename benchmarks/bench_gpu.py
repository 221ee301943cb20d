"""The rows for GPUs (benchmarks/gpu), where there is one; scripts/gpu_check.sh runs them with everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

RUN = Path(__file__).parent / "gpu" / "run.py"


def test_gpu_rows(session):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    command = [sys.executable, str(RUN), "--output", str(session.folder), "--seconds", "60" if session.small else "600"]
    done = subprocess.run(command + ["--small"] * session.small)
    assert done.returncode == 0, f"a row of ours failed or is wrong: {session.folder / 'gpu.md'}"
