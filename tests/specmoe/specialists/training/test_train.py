"""A specialist's training: on a base in 4 bits, the same bits after any interruption, the base untouched."""

from __future__ import annotations

import dataclasses
import json

import pytest
from tiny_base import save_tiny

from specmoe.specialists.bases import load_quantized, quantized_digest
from specmoe.specialists.family import open_family
from specmoe.specialists.training import OFFLINE, QLORA, prepare_family, train_specialist
from specmoe.training import CheckpointError, TrainingInterrupted
from specmoe.training.tuning import trainer as trainer_module

pytest.importorskip("bitsandbytes")

TINY = dataclasses.replace(
    OFFLINE, examples=64, steps=8, validation=16, evaluations=2, batch_size=8, precision="float32"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("source") / "base")


@pytest.fixture
def family(source, tmp_path):
    return prepare_family(tmp_path / "family", str(source))


def weights(report):
    return (report.model_dir / "adapter_model.safetensors").read_bytes()


def interrupt_before(patch, nth):
    real, calls = trainer_module.TuneTrainer.training_step, iter(range(1, 1000))

    def step(self, *args, **kwargs):
        if next(calls) == nth:
            self.run.stop.requested = True
        return real(self, *args, **kwargs)

    patch.setattr(trainer_module.TuneTrainer, "training_step", step)


def test_a_run_leaves_an_adapter_a_history_and_a_plot(family):
    digest = quantized_digest(family.base_folder)
    report = train_specialist("runic", family, TINY, progress=False)
    folder = family.run_folder("runic")
    assert report.model_dir == family.adapter_folder("runic") == folder / "model"
    names = {path.name for path in report.model_dir.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "specmoe_base.json", "tokenizer.json"} <= names
    assert json.loads((report.model_dir / "specmoe_base.json").read_text())["digest"] == family.digest == digest
    assert (folder / "loss.png").stat().st_size > 0
    losses = [
        line["cross_entropy"] for line in map(json.loads, (folder / "history.jsonl").open()) if "cross_entropy" in line
    ]
    assert losses[-1] < losses[0]
    assert report.training_loss == losses[-1]
    assert open_family(family.folder).specialists == ("runic",)
    assert quantized_digest(family.base_folder) == digest


@pytest.mark.parametrize(
    "settings",
    [TINY, dataclasses.replace(TINY, batch_size=4, accumulation=2, shards=1, gradient_checkpointing=True)],
    ids=["offline", "accumulated, checkpointed"],
)
def test_interrupted_and_resumed_is_the_same_bits(source, tmp_path, settings):
    whole = train_specialist("ascii", prepare_family(tmp_path / "whole", str(source)), settings, progress=False)
    parts = prepare_family(tmp_path / "parts", str(source))
    with pytest.MonkeyPatch.context() as patch:
        interrupt_before(patch, 3 * settings.accumulation)
        with pytest.raises(TrainingInterrupted):
            train_specialist("ascii", parts, settings, progress=False)
    assert parts.specialists == ()
    with pytest.raises(CheckpointError, match=r"alpha: expected 32 .* got 7"):
        train_specialist("ascii", parts, dataclasses.replace(settings, alpha=7), resume=True, progress=False)
    resumed = train_specialist("ascii", parts, settings, resume=True, progress=False)
    assert weights(resumed) == weights(whole)
    assert resumed.validation_loss == whole.validation_loss


def test_a_run_that_is_done_is_not_done_again(family, monkeypatch):
    first = train_specialist("gpu", family, TINY, progress=False)
    monkeypatch.setattr("specmoe.specialists.training.train.load_quantized", None)
    assert train_specialist("gpu", family, TINY, resume=True, progress=False) == first
    with pytest.raises(CheckpointError, match="settings: expected"):
        train_specialist("gpu", family, dataclasses.replace(TINY, rank=8), resume=True, progress=False)


def test_another_base_is_refused(family, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="expected its own base .* got"):
        prepare_family(family.folder, str(other))
    assert prepare_family(family.folder, None) == family


def test_a_base_that_is_damaged_is_refused(family):
    place = family.base_folder / "model.safetensors"
    place.write_bytes(place.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match="sha256"):
        load_quantized(family.base_folder)


def test_an_unknown_specialist_is_named(family):
    with pytest.raises(ValueError, match="specialist: expected coordinator, ascii, runic, gpu, got 'elvish'"):
        train_specialist("elvish", family, QLORA)


def test_a_folder_without_a_family_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="expected family.json"):
        open_family(tmp_path)
