"""What a training run is made of, and the presets."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .files import replace_file

SETTINGS_FILE = "settings.json"
DEVICES = ("auto", "cuda", "mps", "directml", "cpu")


@dataclass(frozen=True)
class TrainSettings:
    """One training run.

    Args:
        output_dir: directory for checkpoints, the final model, history and plot; made if absent.
        dataset: "pydoc" (embedded English prose), "tinyshakespeare", a path to a text file, or a Hugging Face hub name.
        text_column: the column to read of a data set from the hub.
        hidden_size: H, the width of the residual stream.
        num_layers: L, the number of blocks.
        num_heads: attention heads.
        expert_size: I, the inner width of one expert.
        num_experts: E, the experts of a block.
        top_k: K, the experts that serve one token.
        activation: the experts' activation.
        gated: whether experts are gated.
        norm: "rms_norm" or "layer_norm".
        initializer_range: standard deviation of the initial weights.
        dropout: dropout probability.
        block_size: context length in tokens.
        batch_size: windows in a batch.
        steps: optimizer steps in all.
        learning_rate: peak learning rate.
        warmup_steps: steps of linear warmup; a cosine to zero follows.
        weight_decay: AdamW's decay of the matrices; embeddings and norms have none.
        betas: AdamW's two averaging rates.
        grad_clip: largest norm of the whole gradient.
        load_balance_weight: weight of the load-balance loss.
        z_loss_weight: weight of the router's z-loss.
        entropy_weight: weight of the router's entropy bonus.
        eval_every: steps between evaluations on the whole validation split; one more follows the last step.
        save_every: steps between periodic checkpoints; 0 saves only where an evaluation was the best so far.
        keep_checkpoints: how many of the newest checkpoints are kept; the best is kept besides.
        log_every: steps between lines of the history.
        sample_tokens: length in tokens of the text sampled at each evaluation; 0 for none.
        seed: seed of the initial weights, the data order, dropout and samples.
        device: one of "auto", "cuda", "mps", "directml", "cpu".
        resume: continue from the last complete checkpoint in `output_dir`.
        progress: show a progress bar; None shows one where standard error is a terminal.

    Raises:
        ValueError: a value is out of its range; the message names it, what was expected and what came.
    """

    output_dir: str | Path = "runs/specmoe"
    dataset: str = "pydoc"
    text_column: str = "text"

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 2
    expert_size: int = 256
    num_experts: int = 8
    top_k: int = 2
    activation: str = "relu2"
    gated: bool = False
    norm: str = "layer_norm"
    initializer_range: float = 0.05
    dropout: float = 0.0
    block_size: int = 128
    batch_size: int = 16

    steps: int = 1400
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    load_balance_weight: float = 0.01
    z_loss_weight: float = 0.001
    entropy_weight: float = 0.0

    eval_every: int = 350
    save_every: int = 0
    keep_checkpoints: int = 2
    log_every: int = 25
    sample_tokens: int = 100
    seed: int = 1337
    device: str = "auto"
    resume: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        for name in (
            "hidden_size",
            "num_layers",
            "num_heads",
            "expert_size",
            "num_experts",
            "top_k",
            "block_size",
            "batch_size",
            "steps",
            "eval_every",
            "keep_checkpoints",
            "log_every",
        ):
            self._require(name, self._is_integer(name, 1), "an integer of at least 1")
        for name in ("warmup_steps", "save_every", "sample_tokens", "seed"):
            self._require(name, self._is_integer(name, 0), "an integer of at least 0")
        self._require("warmup_steps", self.warmup_steps <= self.steps, f"at most steps={self.steps}")
        self._require("top_k", self.top_k <= self.num_experts, f"at most num_experts={self.num_experts}")
        for name in ("learning_rate", "grad_clip", "initializer_range"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value > 0, "a number above 0")
        for name in ("weight_decay", "load_balance_weight", "z_loss_weight", "entropy_weight"):
            value = getattr(self, name)
            self._require(name, math.isfinite(value) and value >= 0, "a number of at least 0")
        self._require("dropout", 0.0 <= self.dropout < 1.0, "a probability in [0, 1)")
        pair = tuple(self.betas)
        self._require("betas", len(pair) == 2 and all(0 <= b < 1 for b in pair), "two numbers in [0, 1)")
        self._require("device", self.device in DEVICES, f"one of {', '.join(DEVICES)}")

    def _is_integer(self, name: str, least: int) -> bool:
        value = getattr(self, name)
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"TrainSettings: {name}: expected {expected}, got {getattr(self, name)!r}")

    def run_defining(self) -> dict[str, Any]:
        """Returns the settings that a resumed run must share with the run it continues, as JSON values."""
        free = {"output_dir", "resume", "progress", "device", "keep_checkpoints", "text_column"}
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in free}
        values["betas"] = list(self.betas)
        return values

    def save(self, path: Path) -> None:
        """Writes the settings to a JSON file."""
        values = {**dataclasses.asdict(self), "output_dir": str(self.output_dir)}
        replace_file(path, lambda partial: partial.write_text(json.dumps(values, indent=1)))

    @classmethod
    def load(cls, path: Path, **changes: Any) -> TrainSettings:
        """Reads settings from a JSON file.

        Args:
            path: the file.
            changes: settings that replace the file's.

        Returns:
            The settings.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            values = dict(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise CheckpointError(f"resume: {path}: expected a run's settings, found no such file") from error
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"resume: {path}: expected a JSON object, got a damaged file") from error
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise CheckpointError(f"resume: {path}: expected settings of TrainSettings, got {unknown[0]!r}")
        values.update(changes)
        values["betas"] = tuple(values["betas"])
        return cls(**values)


PRESETS: dict[str, dict[str, Any]] = {
    # Minutes on two CPU cores: the defaults of TrainSettings. Width, steps and layer norm follow from the time; at 600
    # steps a learning rate of 4e-3 with an initial scale of 0.05 reached 1.685 nats, 0.02 reached 1.740.
    "cpu": {},
    # 21 M parameters, for a GPU.
    "full": {
        "hidden_size": 384,
        "num_layers": 4,
        "num_heads": 6,
        "expert_size": 768,
        "num_experts": 8,
        "top_k": 2,
        "activation": "gelu",
        "gated": False,
        "norm": "rms_norm",
        "initializer_range": 0.02,
        "block_size": 256,
        "batch_size": 64,
        "steps": 10000,
        "learning_rate": 3e-3,
        "warmup_steps": 2000,
        "load_balance_weight": 0.05,
        "z_loss_weight": 0.001,
        "eval_every": 500,
        "save_every": 1000,
        "log_every": 50,
    },
}


def preset(name: str, **changes: Any) -> TrainSettings:
    """Returns the settings of a preset.

    Args:
        name: one of `PRESETS`.
        changes: settings that differ from the preset's.

    Returns:
        The settings.

    Raises:
        ValueError: there is no such preset or setting, or a value is out of its range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset: name: expected one of {', '.join(sorted(PRESETS))}, got {name!r}")
    known = {f.name for f in dataclasses.fields(TrainSettings)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"preset: {unknown[0]}: expected a setting of TrainSettings, got an unknown name")
    return TrainSettings(**{**PRESETS[name], **changes})
