"""`train`: one run from its settings to a model directory."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import set_seed

from ..transformer import SpecMoeConfig, SpecMoeForCausalLM
from .checkpoints import (
    checkpoint_name,
    checkpoint_step,
    checkpoint_steps,
    clean_leftovers,
    last_checkpoint,
    publish,
)
from .corpus import load_text
from .device import choose_device, torch_device
from .evaluate import perplexity
from .history import PLOT_FILE, History, plot_losses
from .interrupts import StopRequest
from .plain_loop import train_plainly
from .recorder import Recorder
from .reporter import Reporter
from .run_state import Surroundings, check_same_run
from .settings import SETTINGS_FILE, TrainSettings
from .tokenizer import build_character_tokenizer, encode_characters
from .trainer import train_with_trainer
from .windows import Split, TrainWindows, split_in_order, validation_windows

MODEL_DIR, CHECKPOINT_DIR = "model", "checkpoints"
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
        initializer_range=settings.initializer_range,
        max_position_embeddings=settings.block_size,
        dropout=settings.dropout,
        load_balance_weight=settings.load_balance_weight,
        z_loss_weight=settings.z_loss_weight,
        entropy_weight=settings.entropy_weight,
    )


def train(settings: TrainSettings) -> TrainResult:
    """Trains a Mixture-of-Experts transformer on characters.

    The output directory receives `settings.json`, `history.jsonl`, `checkpoints/` and, at the end, `loss.png` and
    `model/`.
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
    if device == "directml" and settings.resume:
        raise ValueError("resume: a run on directml keeps no state to resume from")
    output = Path(settings.output_dir).expanduser()
    text = load_text(settings.dataset, settings.text_column)
    digest = hashlib.sha256(text.encode()).hexdigest()
    resume_from = _claim(output, settings, digest)
    tokenizer = build_character_tokenizer(text, settings.block_size)
    split = split_in_order(encode_characters(tokenizer, text), settings.block_size)
    windows = TrainWindows(
        split.tokens[: split.boundary], settings.block_size, settings.steps * settings.batch_size, settings.seed
    )
    set_seed(settings.seed)
    model = SpecMoeForCausalLM(model_config(settings, len(tokenizer)))
    reporter = Reporter(settings.steps, settings.progress)
    reporter.line(_describe(settings, model, split, device, resume_from))
    history = History(output, checkpoint_step(resume_from) if resume_from else 0)
    place = torch_device(device)
    recorder = Recorder(settings, validation_windows(split, settings.block_size), history, reporter, place)
    with StopRequest() as stop, reporter:
        around = Surroundings(settings, digest, output / CHECKPOINT_DIR, recorder, stop, resume_from)
        if device == "directml":
            model.to(place)  # type: ignore[arg-type]
            best_step, loss = train_plainly(model, tokenizer, windows, around)
        else:
            best_step, loss = train_with_trainer(model, tokenizer, windows, around, device)
    plot_losses(history, output / PLOT_FILE, f"{settings.dataset}, {model.num_parameters() / 1e6:.1f} M parameters")
    return TrainResult(
        model_dir=export_model(output, best_step),
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


def _claim(output: Path, settings: TrainSettings, digest: str) -> Path | None:
    """Prepares the output directory and returns the checkpoint to resume from, if any."""
    checkpoints = output / CHECKPOINT_DIR
    clean_leftovers(output)
    clean_leftovers(checkpoints)
    if settings.resume:
        resume_from = last_checkpoint(checkpoints)
        check_same_run(resume_from, settings, digest)
        return resume_from
    if checkpoint_steps(checkpoints) or (output / MODEL_DIR).exists():
        raise FileExistsError(
            f"output_dir: {output} holds an earlier run: resume it, remove it, or choose another directory"
        )
    output.mkdir(parents=True, exist_ok=True)
    settings.save(output / SETTINGS_FILE)
    return None


def _describe(
    settings: TrainSettings, model: SpecMoeForCausalLM, split: Split, device: str, resume_from: Path | None
) -> str:
    doing = f"resuming from {resume_from}" if resume_from else "training"
    return (
        f"{doing}: {settings.dataset}, {split.boundary:,} characters to train on and "
        f"{len(split.tokens) - split.boundary:,} to validate on; {model.num_parameters():,} parameters, "
        f"{settings.num_experts} experts of which {settings.top_k} serve a token; "
        f"{settings.steps} steps of {settings.batch_size} x {settings.block_size} tokens on {device} "
        f"({torch.get_num_threads()} threads)"
    )
