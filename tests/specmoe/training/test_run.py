"""`train`: from settings to a model directory."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from specmoe.training import TrainSettings, train
from specmoe.training.checkpoints import checkpoint_steps, verify
from specmoe.training.corpus import load_text
from specmoe.training.evaluate import whole_split_loss
from specmoe.training.tokenizer import encode_characters
from specmoe.training.trainer import decayed_parameters, training_arguments
from specmoe.training.windows import split_in_order, validation_windows


def history_of(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def finished(make_settings):
    """Returns the settings and the result of a run that learns something."""
    settings = make_settings(steps=120, warmup_steps=10, eval_every=40, save_every=50, dropout=0.0, log_every=20)
    return settings, train(settings)


def test_a_run_learns_and_leaves_a_loadable_model(finished, corpus):
    settings, result = finished
    assert result.steps == 120 and result.device == "cpu" and result.seconds > 0
    assert result.perplexity == math.exp(result.validation_loss)
    model = AutoModelForCausalLM.from_pretrained(result.model_dir)
    tokenizer = AutoTokenizer.from_pretrained(result.model_dir)
    assert result.parameters == model.num_parameters()
    text = load_text(str(corpus))
    assert len(tokenizer) == len(set(text))
    split = split_in_order(encode_characters(tokenizer, text), settings.block_size)
    loss = whole_split_loss(model, *validation_windows(split, settings.block_size))
    assert loss == result.validation_loss
    # The unigram entropy of this text is 2.5 nats.
    assert loss < 2.0

    records = history_of(settings.output_dir)
    evaluated = {r["step"]: r["validation_loss"] for r in records if "validation_loss" in r}
    assert list(evaluated) == [40, 80, 120]
    assert min(evaluated.values()) == loss == evaluated[result.best_step]
    trained = [r for r in records if "cross_entropy" in r]
    assert [r["step"] for r in trained] == [20, 40, 60, 80, 100, 120]
    for record in trained:
        assert record["loss"] == pytest.approx(
            record["cross_entropy"] + 0.01 * record["load_balance"] + 0.001 * record["z_loss"], rel=1e-5
        )
    assert all(len(r["sample"]) == 5 for r in records if "sample" in r)
    assert (settings.output_dir / "loss.png").is_file()
    verify(result.model_dir)
    best = result.best_step
    assert checkpoint_steps(settings.output_dir / "checkpoints") == sorted({best, 100, 120})


def test_the_schedule_warms_up_and_ends_at_zero(make_settings):
    settings = make_settings(log_every=1, dropout=0.0, steps=12, warmup_steps=3)
    train(settings)
    rates = [r["learning_rate"] for r in history_of(settings.output_dir) if "learning_rate" in r]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 9)) for step in range(9)]
    assert rates == pytest.approx([1e-2 * f for f in (0.0, 1 / 3, 2 / 3, *cosine)])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(make_settings):
    def weights(name, seed):
        return (train(make_settings(name, seed=seed)).model_dir / "model.safetensors").read_bytes()

    first = weights("first", 1)
    assert weights("second", 1) == first
    assert weights("third", 2) != first


def test_an_earlier_run_is_not_overwritten(make_settings):
    settings = make_settings(steps=2, warmup_steps=1)
    train(settings)
    with pytest.raises(FileExistsError, match="output_dir: .*run holds an earlier run"):
        train(settings)


def test_the_optimizer_is_as_documented():
    settings = TrainSettings(steps=2000, weight_decay=0.1)
    arguments = training_arguments(settings, settings.output_dir, "cpu")
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.weight_decay) == (0.9, 0.95, 0.1)
    assert arguments.max_grad_norm == 1.0
    model = torch.nn.ModuleDict(
        {"embed": torch.nn.Embedding(3, 4), "norm": torch.nn.LayerNorm(4), "linear": torch.nn.Linear(4, 4)}
    )
    assert decayed_parameters(model) == ["linear.weight"]


def test_a_run_that_diverges_stops_and_says_so(make_settings):
    settings = make_settings(learning_rate=1e30, grad_clip=1e30, steps=6, log_every=1, eval_every=6, sample_tokens=0)
    with pytest.raises(FloatingPointError, match="loss: expected a finite number, got nan at step"):
        train(settings)
