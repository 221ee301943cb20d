"""Tuning: the loss falls, any interruption leaves the same bits, and what cannot go on says why."""

from __future__ import annotations

import dataclasses
import errno
import json
import threading

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import load_peft_weights
from transformers import GPT2Config, GPT2LMHeadModel

from specmoe.training import CheckpointError, TrainingInterrupted
from specmoe.training.checkpoints import checkpoint_steps
from specmoe.training.data import encode_records, train_tokenizer
from specmoe.training.data.math_problems import generate_math
from specmoe.training.tuning import TuneSettings, labelled_loss, tune
from specmoe.training.tuning import trainer as trainer_module
from specmoe.training.tuning.attention import quick_attention
from specmoe.training.tuning.batches import run_order
from specmoe.training.tuning.shards import ShardedStep

SETTINGS = TuneSettings(
    steps=12, batch_size=4, learning_rate=1e-2, eval_every=5, save_every=3, log_every=2, keep_checkpoints=2
)


@pytest.fixture(scope="module")
def data():
    records = list(generate_math(120, 0))
    tokenizer = train_tokenizer(records, vocab_size=300)
    return tokenizer, encode_records(records[:100], tokenizer, 256), encode_records(records[100:], tokenizer, 256)


def new_model(tokenizer, dropout=0.1):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, summary_first_dropout=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def run(data, output, settings=SETTINGS, model=None, **options):
    tokenizer, train, validation = data
    model = new_model(tokenizer) if model is None else model
    return tune(model, tokenizer, train, validation, output, settings, progress=False, **options)


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "run"
    return run(data, output), output


def lines_of(output):
    lines = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def stop_before(monkeypatch, nth, act):
    """Calls `act(trainer)` before the training step `nth`."""
    real, calls = trainer_module.TuneTrainer.training_step, iter(range(1, 1000))

    def step(self, *args, **kwargs):
        if next(calls) == nth:
            act(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(trainer_module.TuneTrainer, "training_step", step)


def test_the_best_model_is_what_is_kept(data, uninterrupted):
    result, output = uninterrupted
    tokenizer, _, validation = data
    before = labelled_loss(new_model(tokenizer), validation, tokenizer.pad_token_id)
    assert result.validation_loss < before - 0.3
    kept = GPT2LMHeadModel.from_pretrained(result.model_dir)
    assert labelled_loss(kept, validation, tokenizer.pad_token_id) == pytest.approx(result.validation_loss, rel=1e-6)
    losses = [line["validation_loss"] for line in lines_of(output) if "validation_loss" in line]
    assert result.validation_loss == min(losses)
    assert kept.config.use_cache
    assert len(losses) == 3
    assert (output / "loss.png").stat().st_size > 0


@pytest.mark.parametrize("nth", [2, 7, 11])
def test_interrupted_and_resumed_is_the_same_bits(data, tmp_path, monkeypatch, uninterrupted, nth):
    whole, folder = uninterrupted
    output = tmp_path / "run"
    stop_before(monkeypatch, nth, lambda trainer: setattr(trainer.run.stop, "requested", True))
    with pytest.raises(TrainingInterrupted, match=f"after step {nth}"):
        run(data, output)
    monkeypatch.undo()
    result = run(data, output, resume=True)
    assert result.validation_loss == whole.validation_loss
    assert (result.model_dir / "model.safetensors").read_bytes() == (whole.model_dir / "model.safetensors").read_bytes()
    assert lines_of(output) == lines_of(folder)


def test_a_finished_run_tells_its_result_again(data, tmp_path):
    output = tmp_path / "run"
    first = run(data, output)
    again = run(data, output, resume=True)
    assert dataclasses.replace(again, seconds=first.seconds) == first


def test_shards_take_the_same_steps(data, tmp_path):
    plain = run(data, tmp_path / "plain", model=new_model(data[0], 0.0))
    parts = run(data, tmp_path / "parts", dataclasses.replace(SETTINGS, shards=2), model=new_model(data[0], 0.0))
    assert parts.validation_loss == pytest.approx(plain.validation_loss, abs=1e-4)


def test_shards_have_the_same_bits_again(data, tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, shards=2)
    whole = run(data, tmp_path / "whole", settings, attended(data))
    stop_before(monkeypatch, 7, lambda trainer: setattr(trainer.run.stop, "requested", True))
    with pytest.raises(TrainingInterrupted):
        run(data, tmp_path / "parts", settings, attended(data))
    monkeypatch.undo()
    parts = run(data, tmp_path / "parts", settings, attended(data), resume=True)
    weights = [(result.model_dir / "model.safetensors").read_bytes() for result in (whole, parts)]
    assert weights[0] == weights[1]
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]


def attended(data):
    """Returns a model with dropout outside of attention."""
    model = new_model(data[0])
    model.config.attn_pdrop = model.transformer.h[0].attn.attn_dropout.p = 0.0
    return model


def test_each_shard_drops_its_own_and_other_values_at_every_step(data):
    model = attended(data).train()
    drop = model.transformer.drop
    sharded = ShardedStep(model, 2)
    dropped = []
    model.transformer.drop.register_forward_hook(lambda module, given, out: dropped.append((out == 0).flatten()))
    inputs = {"input_ids": torch.ones(4, 8, dtype=torch.int64), "labels": torch.ones(4, 8, dtype=torch.int64)}
    for step in (0, 1, 0):
        sharded(model, inputs, 28, lambda loss: loss.backward(), (0, step))
    sharded.close()
    assert model.transformer.drop is drop
    # Which of two shards comes first is not said.
    pairs = [{tuple(mask.tolist()) for mask in dropped[place : place + 2]} for place in (0, 2, 4)]
    assert pairs[0] == pairs[2] and not pairs[0] & pairs[1]
    assert [len(pair) for pair in pairs] == [2, 2, 2]
    assert torch.stack(dropped).float().mean() == pytest.approx(0.1, abs=0.03)


def test_what_shards_cannot_do_is_said(data, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="shards: expected a divisor of the 4 records of a batch, got 3"):
        dataclasses.replace(SETTINGS, shards=3)
    for more in ({"gradient_checkpointing": True}, {"accumulation": 2}):
        with pytest.raises(ValueError, match="shards: expected 1 with accumulation or gradient_checkpointing, got 2"):
            dataclasses.replace(SETTINGS, shards=2, **more)
    # Inside torch's fused attention.
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    with pytest.raises(ValueError, match="shards: expected a model that draws random numbers in nn.Dropout alone"):
        run(data, tmp_path, dataclasses.replace(SETTINGS, shards=2))


def test_accumulated_batches_are_one_batch(data, tmp_path):
    whole = run(data, tmp_path / "whole", dataclasses.replace(SETTINGS, steps=3))
    parts = run(data, tmp_path / "parts", dataclasses.replace(SETTINGS, steps=3, batch_size=2, accumulation=2))
    assert parts.validation_loss == pytest.approx(whole.validation_loss, abs=0.05)
    first = [lines_of(tmp_path / name)[0]["cross_entropy"] for name in ("whole", "parts")]
    assert first[0] == pytest.approx(first[1], rel=0.05)


def test_a_plateau_stops_the_run(data, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    monkeypatch.setattr(trainer_module, "labelled_loss", lambda *args: next(losses))
    settings = dataclasses.replace(SETTINGS, eval_every=2, patience=2)
    result = run(data, tmp_path / "run", settings)
    assert (result.stopped_early, result.steps, result.best_step) == (True, 8, 4)
    again = run(data, tmp_path / "run", settings, resume=True)
    assert (again.stopped_early, again.steps, again.validation_loss) == (True, 8, 2.0)


def test_an_adapter_alone_is_saved(data, tmp_path):
    tokenizer = data[0]

    def adapted():
        torch.manual_seed(1)
        return get_peft_model(new_model(tokenizer), LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM"))

    whole = run(data, tmp_path / "whole", model=adapted())
    names = {path.name for path in whole.model_dir.iterdir()}
    assert "adapter_model.safetensors" in names
    assert "model.safetensors" not in names
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, 7, lambda trainer: setattr(trainer.run.stop, "requested", True))
        with pytest.raises(TrainingInterrupted):
            run(data, tmp_path / "parts", model=adapted())
    parts = run(data, tmp_path / "parts", model=adapted(), resume=True)
    wanted, got = load_peft_weights(str(whole.model_dir)), load_peft_weights(str(parts.model_dir))
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_full_disk_leaves_the_last_checkpoint(data, tmp_path, monkeypatch, error):
    output = tmp_path / "run"

    def full(self, directory):
        if self.state.global_step >= 6:
            raise error
        return real(self, directory)

    real = trainer_module.TuneTrainer._save_optimizer_and_scheduler
    monkeypatch.setattr(trainer_module.TuneTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-6: not written, what was saved before is kept: .*(No space|write failed)"
    ):
        run(data, output)
    assert checkpoint_steps(output / "checkpoints") == [3, 5]
    assert not list((output / "checkpoints").glob(".*"))
    monkeypatch.undo()
    assert run(data, output, resume=True).steps == 12


def test_what_is_another_run_is_refused(data, tmp_path):
    output = tmp_path / "run"
    tokenizer, train, validation = data
    run(data, output)
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        run(data, output)
    with pytest.raises(CheckpointError, match=r"learning_rate: expected 0.01 .* got 0.1"):
        run(data, output, dataclasses.replace(SETTINGS, learning_rate=0.1), resume=True)
    with pytest.raises(CheckpointError, match="records: expected"):
        run((tokenizer, validation, validation), output, resume=True)


def test_a_loss_that_diverges_is_told(data, tmp_path):
    model = new_model(data[0])
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(FloatingPointError, match="diverged"):
        run(data, tmp_path / "run", model=model)


@pytest.mark.parametrize(
    ("name", "value"),
    [("steps", 0), ("warmup", 1.0), ("precision", "float8"), ("learning_rate", 0.0), ("patience", -1)],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .* got"):
        TuneSettings(**{"steps": 1, name: value})


def test_each_record_comes_once_before_any_comes_again():
    lengths = np.random.default_rng(0).integers(1, 100, 50).tolist()
    order = run_order(lengths, batch_size=10, batches=15, seed=3)
    assert sorted(order.tolist()) == sorted(list(range(50)) * 3)
    assert (order == run_order(lengths, batch_size=10, batches=15, seed=3)).all()
    assert (order != run_order(lengths, batch_size=10, batches=15, seed=4)).any()


def test_a_batch_has_records_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 320)
    batches = lengths[run_order(lengths.tolist(), batch_size=10, batches=32, seed=0)].reshape(-1, 10)
    assert batches.max(axis=1).sum() < 1.1 * batches.mean(axis=1).sum()


def test_the_loss_does_not_depend_on_how_the_records_are_batched(data):
    tokenizer, train, _ = data
    model = new_model(tokenizer)
    losses = [labelled_loss(model, train, tokenizer.pad_token_id, tokens) for tokens in (1, 500, 100_000)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("amx, longest, used", [(False, 512, "eager"), (True, 512, "sdpa"), (False, 513, "sdpa")])
def test_the_attention_is_plain_where_that_is_faster(data, monkeypatch, amx, longest, used):
    model = new_model(data[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    with quick_attention(model, longest):
        assert model.config._attn_implementation == used
    assert model.config._attn_implementation == "sdpa"
