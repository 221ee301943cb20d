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


# Stands for Python on a machine with a GPU: computes nothing, and one op hangs.
PRETENDED = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
    *summary.py*) exec "$REAL" "$@" ;;
    *setuptools*) echo 80.1 ;;
    *"import pytest_timeout"*) exit 1 ;;
    *"-p gpu.compile_tests"*) echo $$ >"$CALLS.pid"; exec sleep 60 ;;
    # On a busy machine what is to stop is still to be told.
    *gpu/run.py*) for _ in {1..100}; do ps -o stat= -p "$(cat "$CALLS.pid")" | grep -q T && break; sleep 0.1; done ;;&
    *gpu/run.py* | *"pytest -v"* | *memcheck*) echo "state: $(ps -o stat= -p "$(cat "$CALLS.pid")")" >>"$CALLS" ;;&
    *every_op.py*route*float32*) printf 'cuda route float32: '; exec sleep 60 ;;
    *every_op.py*) echo "cuda op: ok" ;;
    *pytest*) printf '%s\n' "14 workers [9000 items]" "the sample, 812 tests: 812 passed" "== 4000 passed in 90 s ==" ;;
esac
"""


def _pretended(folder: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs the script on no GPU; returns also what Python was called with."""
    for name in ("python", "compute-sanitizer"):
        (folder / name).write_text(PRETENDED)
        (folder / name).chmod(0o755)
    # The seconds of every_op are what the test takes.
    short = SCRIPT.read_text().replace("call every_op 75 ", "call every_op 8 ").replace('"$0")/.."', '"$ROOT")"')
    (folder / "gpu_check.sh").write_text(short)
    calls = folder / "calls"
    environment = ENVIRONMENT | {"PYTHON": str(folder / "python"), "REAL": sys.executable, "CALLS": str(calls)}
    environment |= {"PATH": f"{folder}:{os.environ['PATH']}", "ROOT": str(SCRIPT.parent), "JOBS": "9"}
    command = ["bash", str(folder / "gpu_check.sh"), *arguments, str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, env=environment), calls.read_text()


def test_the_order_of_the_parts_on_a_gpu_that_hangs_in_one_op(tmp_path: Path) -> None:
    done, said = _pretended(tmp_path)
    folder = tmp_path / "out"
    parts = json.loads((folder / "gpu.json").read_text())["parts"]
    assert list(parts) == ["build", "every_op", "bench", "memcheck", "racecheck", "tests"]
    assert {name for name, part in parts.items() if part["status"] != "passed"} == {"every_op"}, done.stdout
    assert parts["every_op"]["detail"] == "17 ok; 0 not there; cuda route float32"
    assert "cuda route float32: FAILED: no answer from route float32" in (folder / "every_op.log").read_text()
    assert said.index("every_op.py --ops") < said.index("warm.py") < said.index("run.py") < said.index("pytest -v")
    assert "tests/ops tests/backends" in said
    # Kernels are compiled before and after the benchmark, not beside it, and no longer when the tests begin.
    states = [line.partition(":")[2].strip()[:1] for line in said.splitlines() if line.startswith("state:")]
    assert states == ["T", "S", ""]
    assert parts["tests"]["detail"] == " 4000 passed in 90 s ;of 9000;the sample, 812 tests: 812 passed"
    assert "--dtypes bfloat16 --backends cuda,triton" in said
    assert len(list(folder.iterdir())) == 8
    assert not subprocess.run(["pgrep", "-f", str(tmp_path / "python")], capture_output=True, text=True).stdout


def test_on_a_gpu_the_sample_comes_first() -> None:
    # A device of another name than the one that is not a GPU.
    here = ENVIRONMENT | {"MOE_TEST_DEVICE": "cpu:0", "TRITON_INTERPRET": "1"}
    chosen = ["tests/ops/test_permute.py", "-k", "test_unpermute and triton and float32 and weighted and 3-8"]
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, capture_output=True, text=True, env=here, cwd=SCRIPT.parents[1])
    assert done.returncode == 0, done.stdout
    order = [line.split("[")[1] for line in done.stdout.splitlines() if line.startswith("tests/")]
    assert [name.partition("-triton")[0] for name in order] == ["3-8-8", "63-8-2", "3-8-1", "3-8-2", "63-8-1", "63-8-8"]
    assert "the sample, 2 tests: 2 passed" in done.stdout


def test_without_the_benchmark_all_tests_run(tmp_path: Path) -> None:
    done, said = _pretended(tmp_path, "--parts", "tests")
    assert "tests      at most 5" in done.stdout and done.returncode == 0, done.stdout
    assert "tests/ops tests/backends" in said and "every_op" not in said


@pytest.mark.slow
def test_every_part_is_recorded(tmp_path: Path) -> None:
    # More than it needs, for a machine that does much else.
    done = _run("--cpu", "--minutes", "60", tmp_path)
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
        ["bash", str(SCRIPT), "--cpu", "--minutes", "60", "--parts", "build,bench", str(tmp_path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        # A shell's job in the background ignores it, and so would a script that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    rows = tmp_path / "gpu.json"
    # On a machine that does much else, the first row is measured after minutes.
    end = time.monotonic() + 400
    while time.monotonic() < end and not (rows.exists() and json.loads(rows.read_text())["rows"]):
        assert script.poll() is None, script.communicate()[0].decode()
        time.sleep(0.1)
    script.send_signal(signal.SIGINT)
    said = script.communicate(timeout=200)[0].decode()
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
