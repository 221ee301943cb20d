"""Models of Qwen2.5-1.5B's size within 3 GiB, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from specmoe.specialists.runtime.memory import give_back, peak_memory, resident_memory

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")


@linux
def test_what_is_freed_is_given_back():
    before = resident_memory()
    pieces = [torch.ones(1 << 14) for _ in range(1 << 10)]
    assert resident_memory() - before > 40 << 20
    del pieces
    give_back()
    assert resident_memory() - before < 24 << 20
    assert peak_memory() >= resident_memory() > 0


@linux
@pytest.mark.slow
def test_three_models_alternate_within_3_gib(tmp_path):
    def run(script, *arguments):
        command = [sys.executable, BENCHMARKS / script, tmp_path, *arguments]
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)

    made = run("random_specialists.py")
    assert made.returncode == 0 and made.stdout.count("1.14 GB") == 3, made.stderr
    done = run("specialists_memory.py", "--memory", "3GiB")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["within_budget"]
    # The coordinator stays; the specialists push each other out.
    assert [turn["loaded"] for turn in report["turns"]] == [True, True, True, False, True, True]
    refused = run("specialists_memory.py", "--memory", "2GiB")
    assert refused.returncode == 1 and "memory: expected at least 2.1 GiB for models" in refused.stderr
