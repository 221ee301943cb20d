"""Continuous training: resumable, keeps the best, stops on a plateau."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import SMALL, interrupt_after, tiny_base

from specmoe.lora.loop import STATE_FILE, train_in_rounds
from specmoe.lora.settings import AdapterSettings
from specmoe.training import CheckpointError, TrainingInterrupted

pytestmark = pytest.mark.usefixtures("small_domains")
SETTINGS = AdapterSettings(**{**SMALL, "epochs": 1, "learning_rate": 0.01})


@pytest.fixture
def base():
    return tiny_base()


def test_rounds_go_on_from_the_best(base, tmp_path, monkeypatch):
    whole = train_in_rounds("math", base, tmp_path / "whole", SETTINGS, rounds=3)
    assert len(whole.losses) == 3 and whole.validation_loss == min(whole.losses) and not whole.plateau
    assert whole.losses[1] < whole.losses[0]
    with monkeypatch.context() as patched:
        interrupt_after(patched, 9)  # in the second round
        with pytest.raises(TrainingInterrupted):
            train_in_rounds("math", base, tmp_path / "parts", SETTINGS, rounds=3)
    parts = train_in_rounds("math", base, tmp_path / "parts", SETTINGS, rounds=3)
    assert parts.losses == whole.losses
    one, other = (load_file(result.model_dir / "adapter_model.safetensors") for result in (whole, parts))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "parts").glob("round-*"))


def test_a_plateau_ends_it_and_the_best_stays(base, tmp_path):
    train_in_rounds("math", base, tmp_path, SETTINGS, rounds=1)
    before = load_file(tmp_path / "model" / "adapter_model.safetensors")
    state = json.loads((tmp_path / STATE_FILE).read_text())
    state["best"] = 0.0  # nothing is better
    (tmp_path / STATE_FILE).write_text(json.dumps(state))
    result = train_in_rounds("math", base, tmp_path, SETTINGS, patience=2)
    assert result.plateau and len(result.losses) == 3
    after = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_it_is_not_another_loop(base, tmp_path):
    train_in_rounds("math", base, tmp_path, SETTINGS, rounds=1)
    with pytest.raises(CheckpointError, match="domain: expected 'math'"):
        train_in_rounds("code", base, tmp_path, SETTINGS)


def test_an_interrupted_first_round_is_of_its_base(base, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        with pytest.raises(TrainingInterrupted):
            train_in_rounds("math", base, tmp_path, SETTINGS, rounds=1)
    with pytest.raises(CheckpointError, match="base: expected"):
        train_in_rounds("math", tiny_base(seed=1), tmp_path, SETTINGS, rounds=1)


def test_killed_between_the_first_best_and_its_state(base, tmp_path, monkeypatch):
    whole = train_in_rounds("math", base, tmp_path / "whole", SETTINGS, rounds=1)

    class Killed(BaseException):
        pass

    def die(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("specmoe.lora.loop.replace_file", die)
        with pytest.raises(Killed):
            train_in_rounds("math", base, tmp_path / "parts", SETTINGS, rounds=1)
    assert (tmp_path / "parts" / "model").is_dir()
    parts = train_in_rounds("math", base, tmp_path / "parts", SETTINGS, rounds=1)
    assert (parts.validation_loss, parts.losses) == (whole.validation_loss, whole.losses)
    told = [json.loads((tmp_path / name / STATE_FILE).read_text()) for name in ("whole", "parts")]
    # The round has brought something.
    assert told[0] == told[1] and told[1]["worse"] == 0
    # Killed while it replaced the best, it finds the best again.
    parts.model_dir.rename(parts.model_dir.with_name(".replaced-model"))
    train_in_rounds("math", base, tmp_path / "parts", SETTINGS, rounds=1)
    assert parts.model_dir.is_dir()
