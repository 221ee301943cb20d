"""What a training loop works with, and the files of a checkpoint that are this project's own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from .errors import CheckpointError
from .interrupts import StopRequest
from .recorder import Recorder
from .settings import TrainSettings

RUN_STATE_FILE = "run_state.json"


@dataclass
class Surroundings:
    """What a training loop works with besides model and data.

    Args:
        settings: the run's settings.
        corpus_digest: SHA-256 of the text.
        checkpoints: directory of the checkpoints.
        recorder: measures the run.
        stop: whether Ctrl-C was pressed.
        resume_from: the checkpoint that the run continues; None for a fresh one.
    """

    settings: TrainSettings
    corpus_digest: str
    checkpoints: Path
    recorder: Recorder
    stop: StopRequest
    resume_from: Path | None = None


def write_run_state(directory: Path, around: Surroundings) -> None:
    """Writes what a resumed run needs besides the Trainer's own files."""
    state = {
        "settings": around.settings.run_defining(),
        "corpus_sha256": around.corpus_digest,
        "recorder": around.recorder.state(),
    }
    (directory / RUN_STATE_FILE).write_text(json.dumps(state, indent=1))


def read_run_state(checkpoint: Path) -> dict[str, Any]:
    """Returns what `write_run_state` wrote."""
    return json.loads((checkpoint / RUN_STATE_FILE).read_text())


def check_same_run(checkpoint: Path, settings: TrainSettings, corpus_digest: str) -> None:
    """Checks that a checkpoint was written with the same settings and text.

    Args:
        checkpoint: the checkpoint to continue.
        settings: the settings asked for now.
        corpus_digest: SHA-256 of the text now.

    Raises:
        CheckpointError: something differs; the message names it with both values.
    """
    state = read_run_state(checkpoint)
    stored = {**state["settings"], "dataset SHA-256": state.get("corpus_sha256")}
    for name, value in {**settings.run_defining(), "dataset SHA-256": corpus_digest}.items():
        if stored.get(name) != value:
            raise CheckpointError(f"resume: {name}: expected {stored.get(name)!r} as in {checkpoint}, got {value!r}")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, directory: Path) -> None:
    """Writes what `from_pretrained` of model and tokenizer reads."""
    with quiet_progress_bars():
        model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


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
