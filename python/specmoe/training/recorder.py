"""Measures a run: sums the loss terms between records, evaluates, writes the history and reports."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .evaluate import perplexity, whole_split_loss
from .history import History
from .reporter import Reporter
from .sampling import sample_text
from .settings import TrainSettings

LOSS_TERMS = ("loss", "cross_entropy", "load_balance", "z_loss", "entropy")


class Recorder:
    """What a run has done since its last record."""

    def __init__(
        self,
        settings: TrainSettings,
        validation: tuple[torch.Tensor, torch.Tensor],
        history: History,
        reporter: Reporter,
        device: torch.device | str,
    ) -> None:
        """Starts with nothing recorded.

        Args:
            settings: the run's settings.
            validation: input_ids and shift_labels of the whole split, as `validation_windows` returns them.
            history: receives the records.
            reporter: shows them.
            device: where the model computes; sums stay there, so that a step does not wait for the host.
        """
        self.settings, self.validation, self.history, self.reporter = settings, validation, history, reporter
        self._sums = torch.zeros(len(LOSS_TERMS), device=device)
        self._summed = 0
        self._clock, self._clock_steps = time.perf_counter(), 0

    def add(self, output: Mapping[str, Any]) -> None:
        """Adds the loss terms of one step's output."""
        self._sums += torch.stack([output[name].detach().float() for name in LOSS_TERMS])
        self._summed += 1
        self._clock_steps += 1

    def record(self, step: int, learning_rate: float) -> None:
        """Writes the mean of each term since the last record to the history.

        Args:
            step: optimizer steps done.
            learning_rate: that of the last step.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        now = time.perf_counter()
        tokens = self._clock_steps * self.settings.batch_size * self.settings.block_size
        values = dict(zip(LOSS_TERMS, (self._sums / max(1, self._summed)).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(
                f"loss: expected a finite number, got {values['loss']} at step {step}: it diverged"
            )
        values["learning_rate"] = learning_rate
        values["tokens_per_second"] = tokens / (now - self._clock)
        self.history.add(step=step, **values)
        self.reporter.training(step, self.settings.steps, values)
        self._sums.zero_()
        self._summed = 0
        self._clock, self._clock_steps = now, 0

    def evaluate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, step: int) -> float:
        """Evaluates on the whole validation split and samples a text.

        Args:
            model: the model.
            tokenizer: its tokenizer.
            step: optimizer steps done.

        Returns:
            The cross-entropy, nats per token.
        """
        started = time.perf_counter()
        loss = whole_split_loss(model, *self.validation)
        sample = ""
        if self.settings.sample_tokens:
            sample = sample_text(model, tokenizer, self.settings.sample_tokens, self.settings.seed)
        self.history.add(step=step, validation_loss=loss, perplexity=perplexity(loss), sample=sample)
        self.reporter.line(f"step {step}: validation loss {loss:.4f}, perplexity {perplexity(loss):.3f}")
        if sample:
            self.reporter.line(sample.strip("\n") + "\n")
        self.exclude(started)
        return loss

    def exclude(self, started: float) -> None:
        """Leaves the time since `started` (of `time.perf_counter`) out of the training speed."""
        self._clock += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Returns what a resumed run needs to record as this one would have, as JSON values."""
        return {"sums": self._sums.tolist(), "summed": self._summed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        self._sums = torch.tensor(state["sums"], device=self._sums.device)
        self._summed = state["summed"]
