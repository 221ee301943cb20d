"""SIGKILL and Ctrl-C, sent to a real process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from specmoe.training import train

# The child blocks where the test wants to kill it and says so by making a file.
CHILD = """
import json, os, pathlib, sys, time
from specmoe.training import TrainSettings, checkpoints, train
from specmoe.training.trainer import SpecMoeTrainer

where, waiting = sys.argv[2], pathlib.Path(sys.argv[3])

def wait():
    waiting.touch()
    time.sleep(600)

flush, compute_loss, steps = checkpoints._flush, SpecMoeTrainer.compute_loss, []

def flush_and_wait(path):
    flush(path)
    if where == "save" and "checkpoint-6" in str(path.parent) and path.name == "optimizer.pt":
        wait()

def step_and_wait(self, *args, **kwargs):
    loss = compute_loss(self, *args, **kwargs)
    steps.append(None)
    if len(steps) == 7 and where == "step":
        wait()
    if len(steps) == 7 and where == "interrupt":
        waiting.touch()
        while not self.around.stop.requested:
            time.sleep(0.01)
    return loss

checkpoints._flush, SpecMoeTrainer.compute_loss = flush_and_wait, step_and_wait
values = json.loads(sys.argv[1])
values["betas"] = tuple(values["betas"])
train(TrainSettings(**values))
"""


def start(settings, where, waiting):
    """Starts a run in another process and returns it when it has come to the place where it waits."""
    values = json.dumps({**dataclasses.asdict(settings), "output_dir": str(settings.output_dir)})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, values, where, str(waiting)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not waiting.exists():
        assert child.poll() is None, child.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return child


@pytest.fixture
def expected(make_settings):
    """Returns the loss and the weights of a run that nothing disturbs."""
    result = train(make_settings("undisturbed"))
    return result.validation_loss, (result.model_dir / "model.safetensors").read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
@pytest.mark.parametrize("where", ["save", pytest.param("step", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_bits(make_settings, tmp_path, expected, where):
    settings = make_settings()
    child = start(settings, where, tmp_path / "waiting")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    partial = settings.output_dir / "checkpoints" / ".partial-checkpoint-6"
    assert partial.is_dir() == (where == "save")
    result = train(dataclasses.replace(settings, resume=True))
    assert (result.validation_loss, (result.model_dir / "model.safetensors").read_bytes()) == expected
    assert not partial.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process")
def test_ctrl_c_saves_and_the_run_resumes_to_the_same_bits(make_settings, tmp_path, expected):
    settings = make_settings()
    child = start(settings, "interrupt", tmp_path / "waiting")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert "TrainingInterrupted: interrupted after step 7; state saved in" in errors
    assert (settings.output_dir / "checkpoints" / "checkpoint-7").is_dir()
    result = train(dataclasses.replace(settings, resume=True))
    assert (result.validation_loss, (result.model_dir / "model.safetensors").read_bytes()) == expected
