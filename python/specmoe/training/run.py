"""`train`: one run from its settings to a model directory."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, set_seed

from ..transformer import SpecMoeConfig, SpecMoeForCausalLM
from .checkpoints import (
    checkpoint_name,
    checkpoint_steps,
    clean_leftovers,
    last_checkpoint,
    publish,
)
from .corpus import load_text
from .device import choose_device
from .errors import TrainingInterrupted
from .evaluate import perplexity
from .history import PLOT_FILE, History, plot_losses
from .interrupts import StopRequest
from .reporter import Reporter
from .settings import TrainSettings
from .tokenizer import build_character_tokenizer, encode_characters
from .trainer import SpecMoeTrainer, Surroundings, check_same_run
from .windows import TrainWindows, split_in_order, validation_windows

MODEL_DIR, CHECKPOINT_DIR, SETTINGS_FILE = "model", "checkpoints", "settings.json"
# What from_pretrained reads; the rest of a checkpoint is needed only to go on training.
_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TrainResult:
    """What a finished run has come to.

    Args:
        model_dir: directory of the best model, for `from_pretrained` of AutoModelForCausalLM and AutoTokenizer.
        validation_loss: its cross-entropy on the whole validation split, nats per token.
        perplexity: exp of it.
        best_step: the step after which it was reached.
        steps: the optimizer steps of the run.
        seconds: wall-clock time of this call.
        parameters: the number of the model's parameters.
        device: the kind of device it ran on.
    """

    model_dir: Path
    validation_loss: float
    perplexity: float
    best_step: int
    steps: int
    seconds: float
    parameters: int
    device: str


def model_config(settings: TrainSettings, vocab_size: int) -> SpecMoeConfig:
    """Returns the model's configuration for a run's settings and its tokenizer's vocabulary."""
    return SpecMoeConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        intermediate_size=settings.expert_size,
        num_experts=settings.num_experts,
        num_experts_per_tok=settings.top_k,
        hidden_act=settings.activation,
        gated_experts=settings.gated,
        norm_type=settings.norm,
        zero_init_outputs=settings.zero_init_outputs,
        max_position_embeddings=settings.block_size,
        dropout=settings.dropout,
        load_balance_weight=settings.load_balance_weight,
        z_loss_weight=settings.z_loss_weight,
        entropy_weight=settings.entropy_weight,
    )


def train(settings: TrainSettings) -> TrainResult:
    """Trains a Mixture-of-Experts transformer on characters.

    The output directory receives `settings.json`, `history.jsonl`, `loss.png`, `checkpoints/` and, at the end, `model/`.
    On CPU the result is a function of the settings and the number of threads: the same bits whether or not the run was
    interrupted, killed and resumed on the way.

    Args:
        settings: the run.

    Returns:
        The result.

    Raises:
        ValueError: a setting is out of its range or the device cannot be used.
        DataError: the data set is missing or damaged.
        CheckpointError: `resume` found no checkpoint, a damaged one, or one of another run.
        FileExistsError: the output directory holds another run and `resume` is not set.
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    started = time.perf_counter()
    device = choose_device(settings.device)
    output = Path(settings.output_dir).expanduser()
    resume_from = _claim(output, settings)
    text = load_text(settings.dataset, settings.text_column)
    tokenizer = build_character_tokenizer(text, settings.block_size)
    split = split_in_order(encode_characters(tokenizer, text), settings.block_size)
    windows = TrainWindows(
        split.tokens[: split.boundary], settings.block_size, settings.steps * settings.batch_size, settings.seed
    )
    set_seed(settings.seed)
    model = SpecMoeForCausalLM(model_config(settings, len(tokenizer)))
    reporter = Reporter(settings.steps, settings.progress)
    reporter.line(_describe(settings, model, split.boundary, len(split.tokens), device, resume_from))
    step = int(resume_from.name.rpartition("-")[2]) if resume_from else 0
    history = History(output, step)
    with StopRequest() as stop, reporter:
        around = Surroundings(
            settings,
            output / CHECKPOINT_DIR,
            validation_windows(split, settings.block_size),
            history,
            reporter,
            stop,
            resume_from,
        )
        trainer = SpecMoeTrainer(model, tokenizer, windows, around, device)
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    plot_losses(history, output / PLOT_FILE, f"{settings.dataset}, {model.num_parameters() / 1e6:.1f} M parameters")
    if trainer.interrupted_at is not None:
        raise TrainingInterrupted(trainer.interrupted_at, trainer.state.global_step)
    best_step, loss = trainer.state.best_global_step, trainer.state.best_metric
    assert best_step is not None and loss is not None  # the last step evaluates
    model_dir = export_model(output, best_step)
    return TrainResult(
        model_dir=model_dir,
        validation_loss=loss,
        perplexity=perplexity(loss),
        best_step=best_step,
        steps=settings.steps,
        seconds=time.perf_counter() - started,
        parameters=model.num_parameters(),
        device=device,
    )


def export_model(output: Path, step: int) -> Path:
    """Copies the model of a checkpoint to the run's model directory, which is replaced as a whole.

    Args:
        output: the run's directory.
        step: the checkpoint's step.

    Returns:
        The model directory.
    """
    source = output / CHECKPOINT_DIR / checkpoint_name(step)

    def copy(target: Path) -> None:
        for name in _MODEL_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)

    return publish(output, MODEL_DIR, copy)


def _claim(output: Path, settings: TrainSettings) -> Path | None:
    """Prepares the output directory and returns the checkpoint to resume from, if any."""
    checkpoints = output / CHECKPOINT_DIR
    if settings.resume:
        clean_leftovers(output)
        clean_leftovers(checkpoints)
        resume_from = last_checkpoint(checkpoints)
        check_same_run(resume_from, settings)
        return resume_from
    if checkpoint_steps(checkpoints) or (output / MODEL_DIR).exists():
        raise FileExistsError(
            f"output_dir: {output} holds an earlier run: resume it, remove it, or choose another directory"
        )
    output.mkdir(parents=True, exist_ok=True)
    clean_leftovers(output)
    clean_leftovers(checkpoints)
    values = {**dataclasses.asdict(settings), "output_dir": str(settings.output_dir)}
    partial = output / f".{SETTINGS_FILE}.partial"
    partial.write_text(json.dumps(values, indent=1))
    os.replace(partial, output / SETTINGS_FILE)
    return None


def _describe(
    settings: TrainSettings,
    model: SpecMoeForCausalLM,
    boundary: int,
    total: int,
    device: str,
    resume_from: Path | None,
) -> str:
    doing = f"resuming from {resume_from}" if resume_from else "training"
    return (
        f"{doing}: {settings.dataset}, {boundary:,} characters to train on and {total - boundary:,} to validate on; "
        f"{model.num_parameters():,} parameters, {settings.num_experts} experts of which {settings.top_k} serve a token; "
        f"{settings.steps} steps of {settings.batch_size} x {settings.block_size} tokens on {device} "
        f"({torch.get_num_threads()} threads)"
    )
