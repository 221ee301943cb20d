"""Training of the learned family, resumable.

Letters: B samples, L layers, E experts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..traces import RouteTrace
from ..whole_file import whole_file
from .augment import augmented
from .configurations import LearnedSettings
from .data import Samples
from .model import Ensemble, RouteTransformer, build

FORMAT = "specmoe learned predictor 1"
# Share of a run's minutes after which the learning rate is whole, however few steps that were.
WARM_BY = 0.1


@dataclass(frozen=True)
class LearnedRun:
    """What training returned.

    Args:
        model: the network, in evaluation mode.
        settings: its configuration.
        steps: how many were taken, earlier runs included.
        seconds: of training, earlier runs included.
        loss: mean cross-entropy of use over the last hundred steps, nats an expert.
    """

    model: RouteTransformer | Ensemble
    settings: LearnedSettings
    steps: int
    seconds: float
    loss: float

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())


def train_learned(
    trace: RouteTrace,
    settings: LearnedSettings,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    save_every: int = 500,
    progress: Callable[[int, float, float], None] | None = None,
) -> LearnedRun:
    """Train a configuration.

    Weights and sums are float32, products `dtype`. A batch is drawn from the step's number and the seed, so a run that
    was interrupted and resumed sees what an uninterrupted one sees. The learning rate follows a cosine to the end of
    the steps or, where they come first, of the minutes.

    Args:
        trace: routes of the prompts to train on.
        settings: the configuration.
        checkpoint: where to save every `save_every` steps and at the end; None for nowhere.
        resume: continue from the checkpoint, which must be of the same configuration.
        dtype: of the products.
        save_every: steps between checkpoints.
        progress: called with (step, loss, seconds) every hundred steps.

    Raises:
        FloatingPointError: the loss is not finite.
        FileNotFoundError: there is nothing to resume.
        ValueError: the checkpoint is of something else.
    """
    L, E = trace.experts.shape[1], trace.num_experts
    model = build(L, E, settings)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, betas=(0.9, 0.98), fused=True
    )
    step, before = 0, 0.0
    if resume:
        if checkpoint is None or not checkpoint.is_file():
            raise FileNotFoundError(f"learned: resume: no checkpoint at {checkpoint}")
        saved = _read(checkpoint)
        if saved["settings"]["name"] != settings.name or saved["shape"] != [L, E]:
            raise ValueError(f"learned: resume: {checkpoint}: expected {settings.name} for (L, E) of {[L, E]}, got "
                             f"{saved['settings']['name']} for {saved['shape']}")  # fmt: skip
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, before = saved["step"], saved["seconds"]
    samples = Samples.of(trace, settings)
    begin = time.perf_counter()
    recent: list[float] = []
    model.train()

    def spent() -> float:
        return before + time.perf_counter() - begin

    while step < settings.steps and (not settings.minutes or spent() < 60 * settings.minutes):
        rng = np.random.default_rng((settings.seed, step))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * _schedule(step, spent(), settings)
        optimizer.zero_grad()
        loss = _loss(model, samples, rng, settings, dtype)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"learned: {settings.name}: the loss is {value} at step {step}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        recent = [*recent[-99:], value]
        if progress is not None and step % 100 == 0:
            progress(step, float(np.mean(recent)), spent())
        if checkpoint is not None and step % save_every == 0:
            _write(checkpoint, model, optimizer, settings, [L, E], step, spent())
    run = LearnedRun(model.eval(), settings, step, spent(), float(np.mean(recent)) if recent else math.nan)
    if checkpoint is not None:
        _write(checkpoint, model, optimizer, settings, [L, E], step, run.seconds)
    return run


def _schedule(step: int, seconds: float, settings: LearnedSettings) -> float:
    """Returns the share of the learning rate; a run that its minutes will end is warm soon enough, and cool by then."""
    elapsed = seconds / (60 * settings.minutes) if settings.minutes else 0.0
    warm = min(1.0, max((step + 1) / max(1, settings.warmup), elapsed / WARM_BY))
    done = max(step / settings.steps, elapsed)
    return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, done))))


def _loss(
    model: RouteTransformer | Ensemble,
    samples: Samples,
    rng: np.random.Generator,
    settings: LearnedSettings,
    dtype: torch.dtype,
) -> Tensor:
    """Return the mean loss of a batch; the members of an ensemble see batches of their own."""
    members = list(model.members) if isinstance(model, Ensemble) else [model]
    N, L, E = samples.used.shape
    total = torch.zeros(())
    for member in members:
        tokens = torch.from_numpy(rng.integers(0, N, settings.batch_size))
        layers = torch.from_numpy(rng.integers(0, L, settings.batch_size))
        sets, position_layers, exists = samples.cut(tokens, layers, settings)
        target = samples.used[tokens, layers].float()
        sets, exists, target = augmented(sets, exists, target, layers, rng, settings)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            score = member(sets, position_layers, exists, layers)
        total = total + F.binary_cross_entropy_with_logits(score.float(), target)
    return total / len(members)


def _write(
    path: Path, model: nn.Module, optimizer: Any, settings: LearnedSettings, shape: list[int], step: int, seconds: float
) -> None:
    saved = {
        "format": FORMAT,
        "settings": asdict(settings),
        "shape": shape,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    with whole_file(path) as temporary:
        torch.save(saved, temporary)


def _read(path: Path) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if saved["format"] != FORMAT:
            raise ValueError(f"format {saved['format']!r}")
        return saved
    # What torch raises for a file of another kind depends on its bytes.
    except Exception as error:
        raise ValueError(f"learned: {path}: expected a checkpoint of the learned family, got {error}") from error


def load_learned(path: str | Path) -> LearnedRun:
    """Read a checkpoint, ready to ask.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"predictor: no file at {path}")
    saved = _read(path)
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in saved["settings"].items()}
    settings = LearnedSettings(**given)
    layers, experts = saved["shape"]
    model = build(layers, experts, settings)
    model.load_state_dict(saved["model"])
    return LearnedRun(model.eval(), settings, saved["step"], saved["seconds"], math.nan)
