"""Every Triton kernel compiles for every target, fits its shared memory and spills no registers. No GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed")

PROGRAM = Path(__file__).with_name("compiled.py")
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx1100")


@pytest.mark.parametrize("target", TARGETS)
def test_compiles(target, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    call = [sys.executable, str(PROGRAM), target]
    done = subprocess.run(call, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert reports, "no specimens"
    bad = [f"{report['name']}: {'; '.join(report['problems'])}" for report in reports if report["problems"]]
    assert not bad, "\n".join(bad)
