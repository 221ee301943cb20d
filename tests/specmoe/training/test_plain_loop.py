"""The loop without the Trainer does what the Trainer does."""

from __future__ import annotations

import json

import pytest
import torch

from specmoe.training import run, train


def test_the_plain_loop_follows_the_trainer(make_settings, monkeypatch):
    # No dropout: the Trainer's data loader draws from the random state that dropout draws from.
    settings = make_settings("trainer", log_every=1, dropout=0.0)
    with_trainer = train(settings)
    # The device is a CPU that only claims to be another one.
    monkeypatch.setattr(run, "choose_device", lambda name: "directml")
    monkeypatch.setattr(run, "torch_device", lambda kind: torch.device("cpu"))
    plain_settings = make_settings("plain", log_every=1, dropout=0.0)
    plain = train(plain_settings)
    assert plain.device == "directml"
    assert plain.best_step == with_trainer.best_step
    # The Trainer's fused optimizer rounds differently from the plain one.
    assert plain.validation_loss == pytest.approx(with_trainer.validation_loss, rel=1e-4)
    records = []
    for output in (settings.output_dir, plain_settings.output_dir):
        lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
        records.append([(line["step"], line["cross_entropy"]) for line in lines if "cross_entropy" in line])
    assert [step for step, _ in records[1]] == [step for step, _ in records[0]]
    assert [ce for _, ce in records[1]] == pytest.approx([ce for _, ce in records[0]], rel=1e-4)
    assert (plain.model_dir / "model.safetensors").is_file()


def test_a_run_on_directml_cannot_be_resumed(make_settings, monkeypatch):
    monkeypatch.setattr(run, "choose_device", lambda name: "directml")
    with pytest.raises(ValueError, match="resume: a run on directml keeps no state"):
        train(make_settings(resume=True))
