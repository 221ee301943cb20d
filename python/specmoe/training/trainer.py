"""transformers' Trainer with this project's evaluation, history, checkpoints and stopping."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from .checkpoints import checkpoint_name, prune, publish
from .errors import CheckpointError
from .evaluate import perplexity, whole_split_loss
from .history import History
from .interrupts import StopRequest
from .reporter import Reporter
from .sampling import sample_text
from .settings import TrainSettings
from .windows import TrainWindows, keep_batch

LOSS_TERMS = ("loss", "cross_entropy", "load_balance", "z_loss", "entropy")
RUN_STATE_FILE = "run_state.json"


@dataclass
class Surroundings:
    """What a run works with besides the model: settings, data to evaluate on, and where it reports to.

    Args:
        settings: the run's settings.
        checkpoints: directory of the checkpoints.
        validation: input_ids and shift_labels of the whole validation split, as `validation_windows` returns them.
        history: the record.
        reporter: the display.
        stop: whether Ctrl-C was pressed.
        resume_from: the checkpoint that the run continues; None for a fresh one.
    """

    settings: TrainSettings
    checkpoints: Path
    validation: tuple[torch.Tensor, torch.Tensor]
    history: History
    reporter: Reporter
    stop: StopRequest
    resume_from: Path | None = None


class SpecMoeTrainer(Trainer):
    """Trains on `TrainWindows`; evaluates on the whole split; saves where `StepEvents` says so."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        windows: TrainWindows,
        around: Surroundings,
        device: str,
    ) -> None:
        super().__init__(
            model=model,
            args=training_arguments(around.settings, around.checkpoints.parent, device),
            train_dataset=windows,
            data_collator=keep_batch,
            processing_class=tokenizer,
            callbacks=[StepEvents(self)],
        )
        self.remove_callback(PrinterCallback)
        self.around = around
        self.interrupted_at: Path | None = None
        # Every batch has the same number of labels, so the mean over parts of a batch is the mean of their means.
        self.model_accepts_loss_kwargs = False
        self._sums = torch.zeros(len(LOSS_TERMS), device=self.args.device)
        self._summed_steps = 0
        if around.resume_from is not None:
            self._restore_sums(around.resume_from)
        self._clock, self._clock_steps = time.perf_counter(), 0

    def _restore_sums(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / RUN_STATE_FILE).read_text())
        self._sums = torch.tensor(state["sums"], device=self.args.device)
        self._summed_steps = state["summed_steps"]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return SequentialSampler(self.train_dataset)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Returns the names of the matrices: norms, biases and the embedding keep their size."""
        return decayed_parameters(model)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: nothing reads the estimate, which would walk over every parameter at every step."""
        return 0

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the loss of a batch, whose terms are added to the sums for the history."""
        output = model(**inputs)
        self._sums += torch.stack([output[name].detach().float() for name in LOSS_TERMS])
        self._summed_steps += 1
        self._clock_steps += 1
        return output.loss

    def record_training(self) -> None:
        """Writes the mean of each term since the last record to the history."""
        settings = self.around.settings
        means = (self._sums / max(1, self._summed_steps)).tolist()
        now = time.perf_counter()
        tokens = self._clock_steps * settings.batch_size * settings.block_size
        values = dict(zip(LOSS_TERMS, means, strict=True))
        values["learning_rate"] = self._get_learning_rate()
        values["tokens_per_second"] = tokens / (now - self._clock)
        self.around.history.add(step=self.state.global_step, **values)
        self.around.reporter.training(self.state.global_step, settings.steps, values)
        self._sums.zero_()
        self._summed_steps = 0
        self._clock, self._clock_steps = now, 0

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on the whole validation split and asks for a checkpoint if it is the best so far.

        Returns:
            `eval_loss` in nats per token and `eval_perplexity`.
        """
        started = time.perf_counter()
        settings, step = self.around.settings, self.state.global_step
        loss = whole_split_loss(self.model, *self.around.validation)
        metrics = {"eval_loss": loss, "eval_perplexity": perplexity(loss)}
        sample = ""
        if settings.sample_tokens:
            sample = sample_text(self.model, self.processing_class, settings.sample_tokens, settings.seed)
        self.around.history.add(step=step, validation_loss=loss, perplexity=metrics["eval_perplexity"], sample=sample)
        self.around.reporter.line(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity(loss):.3f}")
        if sample:
            self.around.reporter.line(sample.strip("\n") + "\n")
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.best_metric is None or loss < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = loss, step
            self.control.should_save = True
        # Evaluation is no training time.
        self._clock += time.perf_counter() - started
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        around, step = self.around, self.state.global_step
        path = publish(around.checkpoints, checkpoint_name(step), self._write_state)
        prune(around.checkpoints, around.settings.keep_checkpoints, self.state.best_global_step)
        if around.stop.requested:
            self.interrupted_at = path
        self._clock += time.perf_counter() - started

    def _write_state(self, directory: Path) -> None:
        with quiet_progress_bars():
            self.model.save_pretrained(directory)
        self.processing_class.save_pretrained(directory)
        self._save_optimizer_and_scheduler(str(directory))
        self._save_scaler(str(directory))
        self._save_rng_state(str(directory))
        self.state.save_to_json(str(directory / "trainer_state.json"))
        state = {
            "settings": self.around.settings.run_defining(),
            "sums": self._sums.tolist(),
            "summed_steps": self._summed_steps,
        }
        (directory / RUN_STATE_FILE).write_text(json.dumps(state, indent=1))


class StepEvents(TrainerCallback):
    """Says after which steps the run is recorded, evaluated, saved and stopped."""

    def __init__(self, trainer: SpecMoeTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the control's flags after an optimizer step."""
        around, step = self.trainer.around, state.global_step
        settings = around.settings
        last = step == settings.steps
        around.reporter.advance(step)
        if step % settings.log_every == 0 or last:
            self.trainer.record_training()
        control.should_evaluate = step % settings.eval_every == 0 or last
        control.should_save = last or bool(settings.save_every) and step % settings.save_every == 0
        if around.stop.requested and not last:
            control.should_save = control.should_training_stop = True


def decayed_parameters(model: torch.nn.Module) -> list[str]:
    """Returns the names of the parameters that weight decay applies to: matrices other than embeddings."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return [name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in embeddings]


def training_arguments(settings: TrainSettings, output_dir: Path, device: str) -> TrainingArguments:
    """Returns the Trainer's arguments: its own logging, evaluation and saving are off, `StepEvents` decides."""
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.grad_clip,
        optim="adamw_torch_fused" if device in ("cpu", "cuda") else "adamw_torch",
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
    )
    if arguments.n_gpu > 1:
        # The wrapper for several GPUs cannot gather this model's outputs; one GPU trains any preset.
        arguments._n_gpu = 1
    return arguments


def check_same_run(checkpoint: Path, settings: TrainSettings) -> None:
    """Checks that a checkpoint was written with the same settings.

    Args:
        checkpoint: the checkpoint to continue.
        settings: the settings asked for now.

    Raises:
        CheckpointError: a setting differs; the message names it with both values.
    """
    stored = json.loads((checkpoint / RUN_STATE_FILE).read_text())["settings"]
    for name, value in settings.run_defining().items():
        if stored.get(name) != value:
            raise CheckpointError(
                f"resume: {name}: expected {stored.get(name)!r} as in {checkpoint}, got {value!r}; "
                f"a resumed run keeps its settings"
            )


@contextmanager
def quiet_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing a progress bar for each saved or loaded file."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()
