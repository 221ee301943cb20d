"""Continuous training: rounds that each go on from the best adapter so far, until several bring nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from peft import set_peft_model_state_dict
from peft.utils import load_peft_weights

from ..training.checkpoints import copy_files, publish, put_back, verify
from ..training.errors import CheckpointError
from ..training.files import replace_file
from ..training.tuning import labelled_loss, tune
from .adapters import new_adapter
from .base import TARGETS, Base
from .domains import domain_sides, encoded
from .settings import AdapterSettings

STATE_FILE = "loop.json"
# Better by less than this is no better: a plateau never ends otherwise.
ENOUGH = 1e-3


@dataclass(frozen=True)
class LoopResult:
    """Where continuous training stands.

    Attributes:
        model_dir: the best adapter.
        validation_loss: its loss on the validation records, nats per labelled token.
        losses: of the best step of each round.
        plateau: whether it stopped because rounds brought nothing.
    """

    model_dir: Path
    validation_loss: float
    losses: list[float]
    plateau: bool


def train_in_rounds(
    domain: str,
    base: Base,
    output: Path,
    settings: AdapterSettings,
    *,
    patience: int = 2,
    rounds: int = 100,
    start: Path | None = None,
    progress: bool | None = None,
) -> LoopResult:
    """Trains an adapter round by round; called again on the same folder, it goes on, also within a round.

    Each round takes other records of the domain, or the same in another order, at a learning rate that halves after a
    round that brought nothing.

    Args:
        domain: one of `DOMAINS`, `MIXED`, or a name with a source in the settings.
        base: the frozen base.
        output: the directory; `model/` in it is the best adapter.
        settings: of each round.
        patience: rounds without a better adapter after which it stops.
        rounds: the most rounds.
        start: an adapter to begin with; None for a fresh one.
        progress: show bars; None shows them where standard error is a terminal.

    Raises:
        DataError, CheckpointError, TrainingInterrupted: see `train_adapter`.
    """
    state = _read(output, base, domain, settings)
    sides = domain_sides(domain, settings.sources, settings.seed)
    while len(state["losses"]) < rounds and state["worse"] < patience:
        number = len(state["losses"])
        given = dataclasses.replace(
            settings, seed=settings.seed + number, learning_rate=settings.learning_rate / 2 ** state["worse"]
        )
        held, shift = sides["train"], number * settings.samples % len(sides["train"])
        turned = {**sides, "train": held[shift:] + held[:shift]}
        train, validation = encoded(turned, base.tokenizer, given)
        model = new_adapter(base, given.rank, given.factor, given.dropout, settings.seed, TARGETS)
        try:
            best = output / "model"
            # Without a round in the state, a best adapter is that of this round, killed before it was told.
            if begin := (best if state["losses"] and best.is_dir() else start):
                set_peft_model_state_dict(model, load_peft_weights(str(begin), device="cpu"))
            if state["best"] is None and begin:
                state["best"] = labelled_loss(model, validation, base.tokenizer.pad_token_id)
            title = f"{domain}: round {number + 1}"
            result = tune(
                model, base.tokenizer, train, validation, output / f"round-{number}", given.tuning(len(train)),
                resume=True, title=title, progress=progress, more=given.over(base.digest),
            )  # fmt: skip
        finally:
            model.unload()
            base.model.eval().requires_grad_(False)
        state["losses"].append(result.validation_loss)
        if state["best"] is None or result.validation_loss < state["best"] - ENOUGH:
            _keep(result.model_dir, output)
            state["best"], state["worse"] = result.validation_loss, 0
        else:
            state["worse"] += 1
        replace_file(output / STATE_FILE, lambda partial: partial.write_text(json.dumps(state, indent=1)))
        shutil.rmtree(output / f"round-{number}")
    return LoopResult(output / "model", state["best"], state["losses"], state["worse"] >= patience)


def _keep(source: Path, output: Path) -> None:
    publish(output, "model", partial(copy_files, source))


def _read(output: Path, base: Base, domain: str, settings: AdapterSettings) -> dict[str, Any]:
    """Returns the state of a loop that goes on, or that of a new one."""
    identity = json.loads(json.dumps({"domain": domain, "base": base.digest, **dataclasses.asdict(settings)}))
    path = output / STATE_FILE
    put_back(output, "model")
    if not path.is_file():
        return {"identity": identity, "best": None, "worse": 0, "losses": []}
    state = json.loads(path.read_text())
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            raise CheckpointError(f"loop: {name}: expected {state['identity'].get(name)!r} as in {path}, got {value!r}")
    if (output / "model").is_dir():
        verify(output / "model")
    return state
