"""`tune`: one run from a model and encoded records to the directory of the best model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import set_seed

from ..checkpoints import (
    MANIFEST,
    checkpoint_name,
    checkpoint_step,
    checkpoint_steps,
    clean_leftovers,
    last_checkpoint,
    publish,
)
from ..errors import CheckpointError, TrainingInterrupted
from ..evaluate import perplexity
from ..history import PLOT_FILE, History, plot_losses
from ..interrupts import StopRequest
from ..reporter import Reporter
from .attention import quick_attention
from .batches import ScheduledRecords
from .settings import TuneSettings
from .trainer import STATE_FILE, Progress, Run, TuneTrainer

MODEL_DIR, CHECKPOINT_DIR = "model", "checkpoints"
# What only a run that goes on needs.
_STATE_FILES = {MANIFEST, STATE_FILE, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}


@dataclass(frozen=True)
class TuneResult:
    """What a finished run has come to.

    Attributes:
        model_dir: directory of the best model (of a PEFT model: its adapter) and the tokenizer, for `from_pretrained`.
        validation_loss: its cross-entropy on the validation records, nats per labelled token.
        perplexity: exp of it.
        best_step: the step after which it was reached.
        steps: the optimizer steps that were done.
        seconds: wall-clock time of this call.
        stopped_early: whether a plateau ended it before the last step.
    """

    model_dir: Path
    validation_loss: float
    perplexity: float
    best_step: int
    steps: int
    seconds: float
    stopped_early: bool


def tune(
    model: Any,
    tokenizer: Any,
    train: Any,
    validation: Any,
    output: Path,
    settings: TuneSettings,
    *,
    resume: bool = False,
    title: str = "",
    progress: bool | None = None,
    more: Mapping[str, Any] | None = None,
) -> TuneResult:
    """Trains a causal language model on records, from where it is or on from the last checkpoint.

    The output directory receives `history.jsonl`, `checkpoints/` and, at the end, `loss.png` and `model/`.
    On CPU the result is a function of the model, the records, the settings and the number of threads: the same bits
    whether or not the run was interrupted, killed and resumed on the way.

    Args:
        model: a model of transformers, or of PEFT with one adapter; trained in place.
        tokenizer: its tokenizer, saved beside it.
        train: a `datasets.Dataset` as `encode_records` returns it.
        validation: another one, evaluated whole.
        output: the run's directory.
        settings: the run.
        resume: go on from the last checkpoint in `output`; without one, start.
        title: what the plot is called.
        progress: show a bar; None shows one where standard error is a terminal.
        more: what else a resumed run must share with the run that it continues, by name, as JSON has it: of an adapter
            its base and what is no shape of a factor.

    Returns:
        The result.

    Raises:
        CheckpointError: the last checkpoint is damaged or of another run, or one could not be written.
        FileExistsError: the directory holds another run and `resume` is not set.
        FloatingPointError: the loss diverged.
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    started = time.perf_counter()
    output = output.expanduser()
    # What the caller names comes first: a setting may follow from it.
    identity = {**(more or {}), **settings.run_defining(), "records": _digest(train), "parameters": _shapes(model)}
    resume_from = _claim(output, identity, resume)
    history = History(output, checkpoint_step(resume_from) if resume_from else 0)
    reporter = Reporter(settings.steps, progress)
    forwards = settings.steps * settings.accumulation
    records = ScheduledRecords(train, settings.batch_size, forwards, settings.seed)
    set_seed(settings.seed)
    longest = max(len(row["input_ids"]) for row in records.rows)
    with StopRequest() as stop, reporter, quick_attention(model, longest):
        run = Run(settings, output / CHECKPOINT_DIR, identity, history, reporter, stop)
        if resume_from is not None:
            run.progress = Progress(**_state(resume_from)["progress"])
        trainer = TuneTrainer(model, tokenizer, records, validation, run)
        try:
            _train(trainer, resume_from)
        finally:
            trainer.close()
    plot_losses(history, output / PLOT_FILE, title or output.name)
    state = trainer.state
    assert state.best_global_step is not None and state.best_metric is not None  # the last step evaluates
    return TuneResult(
        model_dir=_export(output, state.best_global_step),
        validation_loss=state.best_metric,
        perplexity=perplexity(state.best_metric),
        best_step=state.best_global_step,
        steps=state.global_step,
        seconds=time.perf_counter() - started,
        stopped_early=run.progress.stopped_early,
    )


def _train(trainer: TuneTrainer, resume_from: Path | None) -> None:
    if resume_from is not None and trainer.run.progress.stopped_early:
        # The run had ended: there is no step to do, only its end to be told.
        trainer.state = type(trainer.state).load_from_json(str(resume_from / "trainer_state.json"))
        return
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    if trainer.interrupted_at is not None:
        raise TrainingInterrupted(trainer.interrupted_at, trainer.state.global_step)


def _claim(output: Path, identity: dict[str, Any], resume: bool) -> Path | None:
    """Prepares the output directory and returns the checkpoint to go on from, if any."""
    checkpoints = output / CHECKPOINT_DIR
    clean_leftovers(output)
    clean_leftovers(checkpoints)
    if not checkpoint_steps(checkpoints):
        output.mkdir(parents=True, exist_ok=True)
        return None
    if not resume:
        raise FileExistsError(f"output: {output} holds an earlier run: resume it, remove it, or choose another")
    found = last_checkpoint(checkpoints)
    stored = _state(found)["identity"]
    for name, value in identity.items():
        if stored.get(name) != value:
            raise CheckpointError(f"resume: {name}: expected {stored.get(name)!r} as in {found}, got {value!r}")
    return found


def _state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE_FILE
    if not path.is_file():
        raise CheckpointError(f"resume: {checkpoint}: expected {STATE_FILE}, found no such file")
    return json.loads(path.read_text())


def _export(output: Path, step: int) -> Path:
    """Copies the model of a checkpoint to the run's model directory, which is replaced as a whole."""
    source = output / CHECKPOINT_DIR / checkpoint_name(step)

    def copy(target: Path) -> None:
        for path in source.iterdir():
            if path.name not in _STATE_FILES:
                shutil.copyfile(path, target / path.name)

    return publish(output, MODEL_DIR, copy)


def _digest(rows: Any) -> str:
    digest, columns = xxhash.xxh64(), rows[:]
    for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True):
        digest.update(torch.tensor([len(ids), *ids, *labels]).numpy().tobytes())
    return digest.hexdigest()


def _shapes(model: Any) -> str:
    told = [f"{name} {tuple(p.shape)} {p.dtype}" for name, p in model.named_parameters() if p.requires_grad]
    return xxhash.xxh64_hexdigest("\n".join(told).encode())
