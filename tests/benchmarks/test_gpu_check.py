"""scripts/gpu_check.sh on a machine without a GPU: what it says, and with --cpu all of it but the GPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.sh"
ENVIRONMENT = os.environ | {"PYTHON": sys.executable}

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("timeout") is None, reason="needs bash and timeout"
)


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = _run(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.startswith("gpu_check: no GPU to check: torch ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("--minutes",), ("--unknown", "x"), ("--minutes", "x", "y"), ("--parts", "x", "y"), ("a", "b")]
)
def test_wrong_arguments_give_the_usage(arguments: tuple[str, ...]) -> None:
    done = _run(*arguments)
    assert (done.returncode, done.stderr.split(":")[0]) == (2, "usage")


@pytest.mark.slow
def test_every_part_is_recorded(tmp_path: Path) -> None:
    done = _run("--cpu", tmp_path)
    assert done.returncode == 0, done.stdout
    data = json.loads((tmp_path / "gpu.json").read_text())
    states = {name: part["status"] for name, part in data["parts"].items()}
    passed = dict.fromkeys(("build", "every_op", "tests", "bench"), "passed")
    assert states == passed | dict.fromkeys(("memcheck", "racecheck"), "skipped")
    assert len(list(tmp_path.iterdir())) <= 8
    assert "| forward " in done.stdout


@pytest.mark.slow
def test_interrupted_it_keeps_what_it_has_and_leaves_nothing_running(tmp_path: Path) -> None:
    script = subprocess.Popen(
        ["bash", str(SCRIPT), "--cpu", "--parts", "build,bench", str(tmp_path)], env=ENVIRONMENT, stdout=subprocess.PIPE
    )
    rows = tmp_path / "gpu.json"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (rows.exists() and json.loads(rows.read_text())["rows"]):
        time.sleep(0.1)
    script.send_signal(signal.SIGINT)
    said = script.communicate(timeout=60)[0].decode()
    assert script.returncode == 130
    assert json.loads(rows.read_text())["rows"]
    assert "| forward " in said
    left = subprocess.run(["pgrep", "-f", f"run.py --device cpu --output {tmp_path}"], capture_output=True, text=True)
    assert not left.stdout


@pytest.mark.slow
def test_without_time_the_parts_say_so(tmp_path: Path) -> None:
    done = _run("--cpu", "--minutes", "0", tmp_path)
    assert done.returncode == 1
    data = json.loads((tmp_path / "gpu.json").read_text())
    assert {part["detail"] for part in data["parts"].values()} == {"no time left", "needs a GPU"}
