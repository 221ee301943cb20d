"""A run that was stopped anywhere and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
from safetensors.torch import load_file, save_file

from specmoe.training import CheckpointError, TrainSettings, train
from specmoe.training import checkpoints as checkpoint_module
from specmoe.training.checkpoints import checkpoint_steps
from specmoe.training.trainer import SpecMoeTrainer


class Died(BaseException):
    """The process ends here."""


def losses_of(output):
    """Returns every line of the history without its timings."""
    lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def resume(settings):
    return train(dataclasses.replace(settings, resume=True))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus, tiny_run):
    """Returns the loss, the weights and the history of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    result = train(TrainSettings(**tiny_run, dataset=str(corpus), output_dir=output))
    return result.validation_loss, (result.model_dir / "model.safetensors").read_bytes(), losses_of(output)


def check_equal(result, output, uninterrupted):
    loss, weights, losses = uninterrupted
    assert result.validation_loss == loss
    assert (result.model_dir / "model.safetensors").read_bytes() == weights
    assert losses_of(output) == losses
    for directory in (output, output / "checkpoints"):
        assert not list(directory.glob(".*")), "leftovers of the killed process"


# Checkpoints are written after steps 3, 4, 6, 8, 9 and 12: the periodic ones and the best ones.
@pytest.mark.parametrize("step", [4, 7, 12], ids=lambda step: f"step{step}")
def test_dying_in_a_step_changes_nothing(make_settings, monkeypatch, uninterrupted, step):
    settings = make_settings()
    real, calls = SpecMoeTrainer.compute_loss, []

    def dying(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == step:
            raise Died
        return real(self, *args, **kwargs)

    monkeypatch.setattr(SpecMoeTrainer, "compute_loss", dying)
    with pytest.raises(Died):
        train(settings)
    monkeypatch.undo()
    check_equal(resume(settings), settings.output_dir, uninterrupted)


@pytest.mark.parametrize("name", ["fsync", "rename"])
@pytest.mark.parametrize("nth", [1, 3])
def test_dying_in_the_middle_of_a_save_changes_nothing(make_settings, monkeypatch, uninterrupted, name, nth):
    settings = make_settings()
    real = getattr(os, name)
    calls = iter(range(1, 1000))

    def dying(*args):
        # The first saves are left alone: there is something to resume from.
        if len(checkpoint_steps(settings.output_dir / "checkpoints")) >= 2 and next(calls) == nth:
            raise Died
        return real(*args)

    monkeypatch.setattr(checkpoint_module.os, name, dying)
    with pytest.raises(Died):
        train(settings)
    monkeypatch.undo()
    check_equal(resume(settings), settings.output_dir, uninterrupted)


def test_a_half_written_checkpoint_is_not_resumed_from(make_settings, monkeypatch, uninterrupted):
    settings = make_settings()
    real = SpecMoeTrainer._save_optimizer_and_scheduler

    def dying(self, directory):
        if self.state.global_step == 8:
            raise Died
        real(self, directory)

    monkeypatch.setattr(SpecMoeTrainer, "_save_optimizer_and_scheduler", dying)
    with pytest.raises(Died):
        train(settings)
    monkeypatch.undo()
    checkpoints = settings.output_dir / "checkpoints"
    assert (checkpoints / ".partial-checkpoint-8" / "model.safetensors").is_file()
    assert checkpoint_steps(checkpoints)[-1] == 6
    check_equal(resume(settings), settings.output_dir, uninterrupted)


def test_resuming_a_finished_run_gives_its_result_again(make_settings, uninterrupted):
    settings = make_settings()
    train(settings)
    check_equal(resume(settings), settings.output_dir, uninterrupted)


def test_a_checkpoint_of_another_model_is_refused(make_settings):
    settings = make_settings()
    train(settings)
    checkpoint = settings.output_dir / "checkpoints" / "checkpoint-12"
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.extra"] = weights.pop("model.norm.weight")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    (checkpoint / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match=r"none for \['model.norm.weight'\] and unknown \['model.extra'\]"):
        resume(settings)


def test_a_run_that_died_before_its_first_checkpoint_starts_over(make_settings, monkeypatch, uninterrupted):
    settings = make_settings()

    def dying(*args):
        raise Died

    monkeypatch.setattr(checkpoint_module.os, "rename", dying)
    with pytest.raises(Died):
        train(settings)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected a checkpoint in .*, found none"):
        resume(settings)
    check_equal(train(settings), settings.output_dir, uninterrupted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 2e-2}, "resume: learning_rate: expected 0.01 as in .*checkpoint-12, got 0.02"),
        ({"steps": 14}, "resume: steps: expected 12 as in .*checkpoint-12, got 14"),
    ],
    ids=["learning_rate", "steps"],
)
def test_a_resumed_run_keeps_its_settings(make_settings, changes, message):
    settings = make_settings()
    train(settings)
    with pytest.raises(CheckpointError, match=message):
        resume(dataclasses.replace(settings, **changes))


def test_a_resumed_run_keeps_its_text(make_settings, tmp_path, corpus):
    own = tmp_path / "own.txt"
    own.write_text(corpus.read_text())
    settings = make_settings(dataset=str(own))
    train(settings)
    own.write_text(corpus.read_text()[::-1])
    with pytest.raises(CheckpointError, match="resume: dataset SHA-256: expected"):
        resume(settings)


def test_a_corrupt_checkpoint_is_refused_by_file(make_settings):
    settings = make_settings()
    train(settings)
    weights = settings.output_dir / "checkpoints" / "checkpoint-12" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint-12/model.safetensors: expected sha256 \w+, got \w+"):
        resume(settings)
