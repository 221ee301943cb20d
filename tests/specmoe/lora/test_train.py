"""Training of an adapter: resumable to the bit, with clear errors, the base untouched."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import SMALL, interrupt_after, tiny_base

from specmoe.lora.adapters import read_adapter
from specmoe.lora.base import digest_of
from specmoe.lora.settings import AdapterSettings
from specmoe.lora.train import train_adapter
from specmoe.training import CheckpointError, DataError, TrainingInterrupted

pytestmark = pytest.mark.usefixtures("small_domains")


@pytest.fixture
def base():
    return tiny_base()


def weights(report):
    return load_file(report.model_dir / "adapter_model.safetensors")


def test_an_adapter_is_trained_and_reported(base, tmp_path):
    report = train_adapter("math", base, tmp_path, AdapterSettings(**SMALL))
    assert digest_of(base.model) == base.digest
    assert (report.steps, report.records) == (12, 24)
    adapter = read_adapter(report.model_dir, "math", base)
    assert adapter.parameters == report.parameters and report.bytes > 4 * report.parameters
    assert report.tokens_per_second > 0 and report.peak_bytes > 0
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert report.validation_loss == min(losses) and losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupted_and_resumed_it_has_the_same_bits(base, tmp_path, monkeypatch, precision):
    settings = AdapterSettings(**{**SMALL, "precision": precision})
    whole = train_adapter("math", base, tmp_path / "whole", settings)
    with monkeypatch.context() as patched:
        interrupt_after(patched, 5)
        with pytest.raises(TrainingInterrupted):
            train_adapter("math", base, tmp_path / "parts", settings)
    assert digest_of(base.model) == base.digest
    parts = train_adapter("math", base, tmp_path / "parts", settings, resume=True)
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    # Once more: nothing is left to do.
    assert train_adapter("math", base, tmp_path / "parts", settings, resume=True) == parts


def test_a_run_is_not_resumed_as_another_one(base, tmp_path):
    train_adapter("math", base, tmp_path, AdapterSettings(**SMALL))
    with pytest.raises(CheckpointError, match="settings: expected"):
        train_adapter("math", base, tmp_path, AdapterSettings(**{**SMALL, "rank": 8}), resume=True)
    with pytest.raises(CheckpointError, match="base: expected"):
        train_adapter("math", tiny_base(seed=1), tmp_path, AdapterSettings(**SMALL), resume=True)
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        train_adapter("math", base, tmp_path, AdapterSettings(**SMALL))


@pytest.mark.parametrize("other", ["base", "alpha", "dropout"])
def test_an_interrupted_run_is_not_resumed_as_another_one(base, tmp_path, monkeypatch, other):
    with monkeypatch.context() as patched:
        interrupt_after(patched, 2)
        with pytest.raises(TrainingInterrupted):
            train_adapter("math", base, tmp_path, AdapterSettings(**SMALL))
    settings = AdapterSettings(**SMALL, **({} if other == "base" else {other: 0.5 if other == "dropout" else 3}))
    with pytest.raises(CheckpointError, match=f"resume: {other}: expected .* as in .*checkpoint-2, got"):
        train_adapter("math", tiny_base(seed=1) if other == "base" else base, tmp_path, settings, resume=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "empty file"),
        ('{"prompt": "a"}\n{"prompt": 3, "completion"', "not loaded"),
        ('{"other": "a"}\n', "columns"),
    ],
)
def test_records_that_cannot_be_used(base, tmp_path, content, told):
    path = tmp_path / "math.jsonl"
    path.write_text(content)
    settings = AdapterSettings(**SMALL, sources={"math": str(path)})
    with pytest.raises(DataError, match=told):
        train_adapter("math", base, tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_last_checkpoint(base, tmp_path, monkeypatch):
    import specmoe.lora.adapters as adapters

    settings = AdapterSettings(**SMALL)
    written, write = [], adapters.write_base_file

    def full(folder, base):
        written.append(folder)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        write(folder, base)

    with monkeypatch.context() as patched:
        patched.setattr(adapters, "write_base_file", full)
        with pytest.raises(CheckpointError, match="No space left"):
            train_adapter("math", base, tmp_path / "run", settings)
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) >= 1 and all(name.startswith("checkpoint-") for name in checkpoints)
    resumed = weights(train_adapter("math", base, tmp_path / "run", settings, resume=True))
    whole = weights(train_adapter("math", base, tmp_path / "whole", settings))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_settings_say_what_is_wrong():
    with pytest.raises(ValueError, match="rank: expected 4 to 64, got 65"):
        AdapterSettings(rank=65)
    with pytest.raises(ValueError, match="samples: expected more than 0"):
        AdapterSettings(samples=0)
