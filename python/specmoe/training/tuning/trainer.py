"""transformers' Trainer with this project's order of records, evaluation, checkpoints and stopping."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..checkpoints import checkpoint_name, prune, publish
from ..data.prepare import collate
from ..data.template import IGNORED
from ..evaluate import perplexity
from ..history import History
from ..interrupts import StopRequest
from ..reporter import Reporter
from ..run_state import quiet_progress_bars
from ..trainer import decayed_parameters
from .batches import ScheduledRecords
from .loss import labelled_loss
from .settings import TuneSettings
from .shards import ShardedStep

STATE_FILE = "tuning_state.json"


@dataclass
class Progress:
    """What a checkpoint keeps besides the Trainer's own files.

    Attributes:
        loss_sum, tokens, steps: since the last line of the history.
        worse: evaluations since the best one.
        stopped_early: whether the plateau ended the run.
    """

    loss_sum: float = 0.0
    tokens: int = 0
    steps: int = 0
    worse: int = 0
    stopped_early: bool = False


@dataclass
class Run:
    """What the trainer works with besides model and data.

    Attributes:
        settings: the run's settings.
        checkpoints: directory of the checkpoints.
        identity: what a run that goes on must share with this one, as JSON values.
        history, reporter, stop: the record, the display, and whether Ctrl-C was pressed.
        progress: since the last line of the history.
    """

    settings: TuneSettings
    checkpoints: Path
    identity: dict[str, Any]
    history: History
    reporter: Reporter
    stop: StopRequest
    progress: Progress = field(default_factory=Progress)


class TuneTrainer(Trainer):
    """Trains on `ScheduledRecords`; `_StepEvents` says when it evaluates, saves and stops."""

    def __init__(self, model: Any, tokenizer: Any, records: ScheduledRecords, validation: Any, run: Run) -> None:
        self.caches = model.config.use_cache
        super().__init__(
            model=model,
            args=_arguments(run.settings, run.checkpoints.parent, model.device.type),
            train_dataset=records,
            data_collator=partial(collate, pad_id=tokenizer.pad_token_id),
            processing_class=tokenizer,
            callbacks=[_StepEvents(self)],
        )
        self.remove_callback(PrinterCallback)
        self.network, self.tokens, self.validation, self.run = model, tokenizer, validation, run
        divided = run.settings.shards > 1 and model.device.type == "cpu"
        self.sharded = ShardedStep(model, run.settings.shards) if divided else None
        self.interrupted_at: Path | None = None
        self.stopping = False
        self.clock = time.perf_counter()

    def close(self) -> None:
        """Ends the threads of the shards."""
        if self.sharded:
            self.sharded.close()

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        assert self.train_dataset is not None
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Returns the names of the parameters that weight decay applies to."""
        return decayed_parameters(model)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: nothing reads the estimate, which would walk over every parameter at every step."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Does one forward and backward pass; its loss is added to the record."""
        tokens = int(inputs["attention_mask"].sum())
        if self.sharded:
            model.train()
            if num_items_in_batch is None:
                num_items_in_batch = (inputs["labels"][:, 1:] != IGNORED).sum()
            seed = self.run.settings.seed, self.state.global_step
            loss = self.sharded(model, inputs, num_items_in_batch, self.accelerator.backward, seed)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.run.progress.loss_sum += loss.item()
        self.run.progress.tokens += tokens
        return loss

    def record(self, step: int) -> None:
        """Writes the mean since the last record to the history.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        now, progress = time.perf_counter(), self.run.progress
        loss = progress.loss_sum / max(1, progress.steps)
        if not math.isfinite(loss):
            raise FloatingPointError(f"loss: expected a finite number, got {loss} at step {step}: it diverged")
        speed = progress.tokens / (now - self.clock)
        self.run.history.add(step=step, cross_entropy=loss, tokens_per_second=speed)
        self.run.reporter.tuning(step, self.run.settings.steps, loss, speed)
        progress.loss_sum, progress.tokens, progress.steps, self.clock = 0.0, 0, 0, now

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on all validation records and asks for a checkpoint if it is the best so far.

        Returns:
            `eval_loss` in nats per labelled token.
        """
        started, step, progress = time.perf_counter(), self.state.global_step, self.run.progress
        loss = labelled_loss(self.network, self.validation, self.tokens.pad_token_id)
        self.run.history.add(step=step, validation_loss=loss, perplexity=perplexity(loss))
        self.run.reporter.line(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity(loss):.3f}")
        metrics = {"eval_loss": loss}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.best_metric is None or loss < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = loss, step
            self.control.should_save, progress.worse = True, 0
        else:
            progress.worse += 1
            if 0 < self.run.settings.patience <= progress.worse and step < self.run.settings.steps:
                progress.stopped_early = self.control.should_save = self.control.should_training_stop = True
        self.clock += time.perf_counter() - started
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started, run = time.perf_counter(), self.run
        path = publish(run.checkpoints, checkpoint_name(self.state.global_step), self._write_checkpoint)
        prune(run.checkpoints, run.settings.keep_checkpoints, self.state.best_global_step)
        if self.stopping:
            self.interrupted_at = path
        self.clock += time.perf_counter() - started

    def _write_checkpoint(self, directory: Path) -> None:
        # The Trainer has switched it off for training. A model that is saved so generates without a cache, which takes
        # 20 times as long.
        config, off = self.network.config, self.network.config.use_cache
        config.use_cache = self.caches
        with quiet_progress_bars():
            self.network.save_pretrained(directory)
        config.use_cache = off
        self.tokens.save_pretrained(directory)
        self._save_optimizer_and_scheduler(str(directory))
        self._save_rng_state(str(directory))
        self.state.save_to_json(str(directory / "trainer_state.json"))
        state = {"identity": self.run.identity, "progress": vars(self.run.progress)}
        (directory / STATE_FILE).write_text(json.dumps(state, indent=1))


class _StepEvents(TrainerCallback):
    """Says after which steps the run is recorded, evaluated, saved and stopped."""

    def __init__(self, trainer: TuneTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the control's flags after an optimizer step."""
        run, step = self.trainer.run, state.global_step
        settings = run.settings
        last = step == settings.steps
        run.progress.steps += 1
        run.reporter.advance(step)
        if step % settings.log_every == 0 or last:
            self.trainer.record(step)
        control.should_evaluate = step % settings.eval_every == 0 or last
        control.should_save = last or (settings.save_every > 0 and step % settings.save_every == 0)
        if run.stop.requested and not last:
            self.trainer.stopping = control.should_save = control.should_training_stop = True


def _arguments(settings: TuneSettings, output: Path, device: str) -> TrainingArguments:
    """Returns the Trainer's arguments: its own logging, evaluation and saving are off, since `_StepEvents` decides."""
    fused = settings.optimizer.endswith("_fused") and device not in ("cpu", "cuda")
    # Not passed where it is off: newer versions of transformers warn of its name.
    optional: dict[str, Any] = {"gradient_checkpointing": True} if settings.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(settings.warmup * settings.steps),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.grad_clip,
        optim="adamw_torch" if fused else settings.optimizer,
        bf16=settings.precision == "bfloat16",
        seed=settings.seed,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        remove_unused_columns=False,
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to="none",
        **optional,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments
