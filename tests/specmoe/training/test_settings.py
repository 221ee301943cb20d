"""Settings and presets."""

from __future__ import annotations

import json
import math

import pytest

from specmoe.training import CheckpointError, TrainSettings, preset


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 9}, "top_k: expected at most num_experts=8, got 9"),
        ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
        ({"steps": 2.5}, "steps: expected an integer of at least 1, got 2.5"),
        ({"warmup_steps": 2000}, "warmup_steps: expected at most steps=.*, got 2000"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"learning_rate": math.inf}, "learning_rate: expected a number above 0, got inf"),
        ({"weight_decay": -0.1}, "weight_decay: expected a number of at least 0, got -0.1"),
        ({"dropout": 1.5}, r"dropout: expected a probability in \[0, 1\), got 1.5"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"device": "tpu"}, "device: expected one of auto, cuda, mps, directml, cpu, got 'tpu'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_name_the_wrong_value(values, message):
    with pytest.raises(ValueError, match="TrainSettings: " + message):
        TrainSettings(**{"steps": 1000, **values})


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="preset: name: expected one of cpu, full, got 'gpu'"):
        preset("gpu")


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="preset: colour: expected a setting of TrainSettings"):
        preset("cpu", colour="red")


def test_the_full_preset_is_the_published_one():
    full = preset("full", seed=7)
    shape = (full.hidden_size, full.num_heads, full.num_layers, full.num_experts, full.top_k, full.expert_size)
    assert shape == (384, 6, 4, 8, 2, 768)
    assert (full.batch_size, full.block_size, full.activation, full.gated) == (64, 256, "gelu", False)
    assert (full.learning_rate, full.warmup_steps, full.steps) == (3e-3, 2000, 10000)
    assert (full.load_balance_weight, full.z_loss_weight) == (0.05, 0.001)
    assert (full.betas, full.weight_decay, full.grad_clip) == ((0.9, 0.95), 0.1, 1.0)
    assert full.seed == 7


def test_settings_survive_a_file(tmp_path):
    settings = preset("full", output_dir=tmp_path, dataset="x.txt", betas=(0.8, 0.9))
    settings.save(tmp_path / "settings.json")
    loaded = TrainSettings.load(tmp_path / "settings.json", resume=True, output_dir=tmp_path)
    assert loaded.resume
    assert loaded.run_defining() == settings.run_defining()
    assert loaded.betas == (0.8, 0.9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a run's settings, found no such file"),
        ("{", "expected a JSON object, got a damaged file"),
        (json.dumps({"colour": 1}), "expected settings of TrainSettings, got 'colour'"),
    ],
    ids=["missing", "damaged", "foreign"],
)
def test_a_settings_file_that_is_none_is_refused_by_name(tmp_path, content, message):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=f"settings.json: {message}"):
        TrainSettings.load(path)
