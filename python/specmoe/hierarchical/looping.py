"""Training that goes on: rounds on new draws of the records, as long as the held-out loss falls."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..training.checkpoints import clean_leftovers, copy_files, publish, verify
from ..training.errors import CheckpointError
from ..training.files import replace_file
from ..training.tuning import labelled_loss, tune
from ..training.tuning.tune import MODEL_DIR
from .records import domain_records
from .training import to_learn, tune_settings
from .workspace import Workspace

LOOP_DIR, STATE_FILE = "loop", "state.json"


@dataclass(frozen=True)
class LoopState:
    """Where a loop stands.

    Attributes:
        rounds: done so far.
        best: the smallest validation loss, nats per token.
        losses: after each round.
        flat: rounds since the last gain.
    """

    rounds: int
    best: float
    losses: list[float]
    flat: int


def train_on(
    workspace: Workspace,
    domain: str,
    rounds: int | None = None,
    steps: int = 200,
    patience: int = 2,
    least_gain: float = 0.002,
    tell: Callable[[str], None] = lambda line: None,
    progress: bool | None = None,
) -> LoopState:
    """Trains a finished expert on, a round at a time, and keeps the best.

    A round begins with the best expert so far, and of a generated domain with problems not seen before. Its
    learning rate rises to a third of the preset's and falls to zero. An expert that is better on the validation records
    replaces the one in the folder; the others are dropped. Another call goes on in the middle of an interrupted round.

    Args:
        workspace: the folder of experts.
        domain: which one.
        rounds: the most rounds of this call; None for no limit.
        steps: optimizer steps of a round.
        patience: rounds without a gain before it stops.
        least_gain: nats per token that count as a gain.
        tell: receives a line after each round.
        progress: show a bar; None shows one on a terminal.

    Raises:
        CheckpointError: the expert is missing or damaged, or a checkpoint could not be written.
        TrainingInterrupted: Ctrl-C; the state is saved.
    """
    folder = workspace.folder(domain) / LOOP_DIR
    validation = workspace.encoded(workspace.records(domain)["validation"])
    state = _read(folder / STATE_FILE)
    if state is None:
        loss = labelled_loss(workspace.expert(domain), validation, workspace.tokenizer.pad_token_id)
        state = LoopState(0, loss, [], 0)
        _write(folder / STATE_FILE, state)
        tell(f"{domain}: begins at validation loss {loss:.4f}")
    elif state.flat >= patience:
        tell(f"{domain}: goes on after a plateau")
        state = dataclasses.replace(state, flat=0)
    last = None if rounds is None else state.rounds + rounds
    while state.flat < patience and state.rounds != last:
        state = _round(workspace, domain, folder, validation, state, steps, least_gain, progress)
        tell(f"{domain}: round {state.rounds}: validation loss {state.losses[-1]:.4f}, best {state.best:.4f}")
    return state


def _round(
    workspace: Workspace,
    domain: str,
    folder: Path,
    validation: object,
    state: LoopState,
    steps: int,
    least_gain: float,
    progress: bool | None,
) -> LoopState:
    number = state.rounds + 1
    plan = workspace.plan
    usual = tune_settings(plan, domain)
    settings = dataclasses.replace(
        usual, steps=steps, learning_rate=usual.learning_rate / 3, eval_every=max(1, steps // 4),
        save_every=max(1, steps // 8), patience=0, seed=plan.seed + number,
    )  # fmt: skip
    train = workspace.encoded(domain_records(plan, domain, first_draw=number * plan.size.draws)["train"])
    output = folder / f"round-{number}"
    result = tune(
        *to_learn(workspace, domain, workspace.expert(domain), train), validation, output, settings,
        resume=True, title=f"{domain} expert, round {number}", progress=progress,
    )  # fmt: skip
    loss = result.validation_loss
    if loss < state.best:
        _replace_expert(workspace.folder(domain), result.model_dir)
    gained = loss < state.best - least_gain
    state = LoopState(number, min(loss, state.best), [*state.losses, loss], 0 if gained else state.flat + 1)
    # In this order: killed in between, the round is read again from its last checkpoint and counted once.
    _write(folder / STATE_FILE, state)
    shutil.rmtree(output / "checkpoints")
    shutil.rmtree(result.model_dir)
    return state


def _replace_expert(folder: Path, model_dir: Path) -> None:
    verify(model_dir)
    clean_leftovers(folder)
    publish(folder, MODEL_DIR, partial(copy_files, model_dir))


def _read(path: Path) -> LoopState | None:
    if not path.is_file():
        return None
    try:
        return LoopState(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"hierarchical: {path}: expected a loop's state, got a damaged file") from error


def _write(path: Path, state: LoopState) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(dataclasses.asdict(state), indent=1)
    replace_file(path, lambda partial: partial.write_text(content))
