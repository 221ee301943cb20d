"""transformers' Trainer with this project's evaluation, checkpoints and stopping."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from .checkpoints import checkpoint_name, prune, publish
from .errors import CheckpointError, TrainingInterrupted
from .evaluate import perplexity
from .run_state import Surroundings, read_run_state, save_model, write_run_state
from .settings import TrainSettings
from .windows import TrainWindows, keep_batch


class SpecMoeTrainer(Trainer):
    """Trains on `TrainWindows`; evaluates on the whole split; `StepEvents` says when."""

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
        self.network, self.tokens, self.windows, self.around = model, tokenizer, windows, around
        self.stopping = False
        self.interrupted_at: Path | None = None
        # Every batch has the same number of labels: a mean over parts of a batch needs no count.
        self.model_accepts_loss_kwargs = False
        if around.resume_from is not None:
            around.recorder.restore(read_run_state(around.resume_from)["recorder"])

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return SequentialSampler(self.windows)

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Returns the names of the parameters that weight decay applies to."""
        return decayed_parameters(model)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns 0: nothing reads the estimate, which would walk over every parameter at every step."""
        return 0

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The head's weights are the embedding's, which are stored once.
        tied = set(self.network._tied_weights_keys or ())
        missing = set(load_result.missing_keys) - tied
        if missing or load_result.unexpected_keys:
            raise CheckpointError(
                f"checkpoint: {self.around.resume_from}: expected the model's weights, "
                f"got none for {sorted(missing)} and unknown {sorted(load_result.unexpected_keys)}"
            )

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Returns the loss of a batch; its terms are added to the record."""
        output = model(**inputs)
        self.around.recorder.add(output)
        return output.loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates on the whole validation split and asks for a checkpoint if it is the best so far.

        Returns:
            `eval_loss` in nats per token and `eval_perplexity`.
        """
        step = self.state.global_step
        loss = self.around.recorder.evaluate(self.network, self.tokens, step)
        metrics = {"eval_loss": loss, "eval_perplexity": perplexity(loss)}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.best_metric is None or loss < self.state.best_metric:
            self.state.best_metric, self.state.best_global_step = loss, step
            self.control.should_save = True
        return metrics

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        around = self.around
        path = publish(around.checkpoints, checkpoint_name(self.state.global_step), self._write_checkpoint)
        prune(around.checkpoints, around.settings.keep_checkpoints, self.state.best_global_step)
        if self.stopping:
            self.interrupted_at = path
        around.recorder.exclude(started)

    def _write_checkpoint(self, directory: Path) -> None:
        save_model(self.network, self.tokens, directory)
        self._save_optimizer_and_scheduler(str(directory))
        self._save_scaler(str(directory))
        self._save_rng_state(str(directory))
        self.state.save_to_json(str(directory / "trainer_state.json"))
        write_run_state(directory, self.around)


def train_with_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    windows: TrainWindows,
    around: Surroundings,
    device: str,
) -> tuple[int, float]:
    """Trains a model, from the start or from `around.resume_from` on.

    Args:
        model: the model.
        tokenizer: its tokenizer, saved beside it.
        windows: the whole run's windows.
        around: what else the loop works with.
        device: "cpu", "cuda" or "mps".

    Returns:
        The step of the best evaluation and its cross-entropy, nats per token.

    Raises:
        TrainingInterrupted: Ctrl-C was pressed; the state is saved.
    """
    trainer = SpecMoeTrainer(model, tokenizer, windows, around, device)
    trainer.train(resume_from_checkpoint=str(around.resume_from) if around.resume_from else None)
    if trainer.interrupted_at is not None:
        raise TrainingInterrupted(trainer.interrupted_at, trainer.state.global_step)
    best_step, best_loss = trainer.state.best_global_step, trainer.state.best_metric
    assert best_step is not None and best_loss is not None  # the last step evaluates
    return best_step, best_loss


class StepEvents(TrainerCallback):
    """Says after which steps the run is recorded, evaluated, saved and stopped."""

    def __init__(self, trainer: SpecMoeTrainer) -> None:
        self.trainer = trainer
        self.learning_rate = 0.0

    def on_pre_optimizer_step(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Notes the learning rate of this step; by its end the schedule has moved on."""
        self.learning_rate = self.trainer._get_learning_rate()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the control's flags after an optimizer step."""
        around, step = self.trainer.around, state.global_step
        settings = around.settings
        last = step == settings.steps
        around.recorder.reporter.advance(step)
        if step % settings.log_every == 0 or last:
            around.recorder.record(step, self.learning_rate)
        control.should_evaluate = step % settings.eval_every == 0 or last
        control.should_save = last or (settings.save_every > 0 and step % settings.save_every == 0)
        if around.stop.requested and not last:
            self.trainer.stopping = control.should_save = control.should_training_stop = True


def decayed_parameters(model: torch.nn.Module) -> list[str]:
    """Returns the names of the parameters that weight decay applies to: matrices other than embeddings."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return [name for name, p in model.named_parameters() if p.dim() >= 2 and id(p) not in embeddings]


def training_arguments(settings: TrainSettings, output_dir: Path, device: str) -> TrainingArguments:
    """Returns the Trainer's arguments: its own logging, evaluation and saving are off, since `StepEvents` decides."""
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
