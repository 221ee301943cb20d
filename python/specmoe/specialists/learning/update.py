"""Steps on one adapter until a rule is learned: new examples and old ones in each batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from ...training.data import collate
from ...training.data.template import IGNORED
from ...training.interrupts import StopRequest
from .blend import Blend

if TYPE_CHECKING:
    from ..runtime.loaded import Loaded

Rows = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class UpdateSettings:
    """How an adapter learns from a correction.

    Args:
        steps: optimizer steps at most.
        check_every: steps between two looks at whether it is learned.
        new, old: rows of a step that are of the correction, and of earlier corrections and the corpora.
        anchor: weight of the Kullback-Leibler divergence of the old rows' answers from those before the correction, in
            nats per token, beside the cross-entropy.
        learning_rate, grad_clip: of AdamW; it does not decay the weights.
        examples: other values for the correction's phrasing that are learned.
        checks: further ones that have to be right, first of all those that the model converts in plain words.
        share: how many of those.
        blends: shares of the new weights that are tried, the rest the old ones, where it is learned and something else
            is lost.
        held_out: examples of the test side whose score must not fall.
        replay: examples of the training side that are learned again.
        seed: of everything that is drawn.
    """

    steps: int = 200
    check_every: int = 10
    new: int = 8
    old: int = 10
    anchor: float = 1.0
    learning_rate: float = 1e-3
    grad_clip: float = 1.0
    examples: int = 48
    checks: int = 16
    share: float = 0.9
    blends: tuple[float, ...] = (0.75, 0.5, 0.35)
    held_out: int = 200
    replay: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "check_every", "new", "examples", "held_out", "replay"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.anchor < 0:
            raise ValueError(f"anchor: expected at least 0, got {self.anchor}")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: expected 0 to 1, got {self.share}")
        if any(not 0 < blend < 1 for blend in self.blends):
            raise ValueError(f"blends: expected shares between 0 and 1, got {self.blends}")


def update(
    loaded: Loaded,
    name: str,
    new: Rows,
    old: Sequence[Rows],
    blend: Blend,
    settings: UpdateSettings,
    learned: Callable[[], bool],
    told: Callable[[int], None],
) -> int:
    """Trains an adapter in place until it has learned, or for all steps, and returns the steps done.

    Args:
        loaded: the base with the adapter on it, locked by the caller.
        name: the adapter.
        new: rows of the correction.
        old: rows of what is to be kept; each sequence that is not empty gives the same share of a batch.
        blend: the adapter's weights, with those before the correction.
        settings: how.
        learned: asked every so many steps.
        told: called with each step that is done.

    Raises:
        KeyboardInterrupt: Ctrl-C, after the step at hand.
    """
    draw = random.Random(f"update {settings.seed}")
    optimizer = torch.optim.AdamW(blend.parameters, settings.learning_rate, weight_decay=0.0)
    pad = loaded.base.tokenizer.pad_token_id
    kept = [rows for rows in old if rows]
    with StopRequest() as stop:
        for step in range(1, settings.steps + 1):
            rows = draw.choices(new, k=settings.new)
            rows += [draw.choice(kept[place % len(kept)]) for place in range(settings.old if kept else 0)]
            _step(loaded, name, collate(rows, pad), optimizer, blend, settings)
            told(step)
            look = step % settings.check_every == 0 or step == settings.steps
            done = look and not stop.requested and learned()
            if stop.requested:
                raise KeyboardInterrupt("interrupted: the adapter stays as it was, the correction is stored")
            if done:
                return step
    return settings.steps


def _step(
    loaded: Loaded,
    name: str,
    batch: dict[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    blend: Blend,
    settings: UpdateSettings,
) -> None:
    model = loaded.base.model
    batch = {key: value.to(model.device) for key, value in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    known = labels != IGNORED
    kept = known[settings.new :]
    anchored = settings.anchor > 0 and bool(kept.any())
    with loaded.rows([name]):
        if anchored:
            with blend.as_before(), torch.no_grad():
                old = {key: value[settings.new :] for key, value in batch.items()}
                said = model(**old, use_cache=False).logits[:, :-1][kept].float().log_softmax(-1)
        with torch.enable_grad():
            logits = model(**batch, use_cache=False).logits[:, :-1]
            loss = F.cross_entropy(logits[known].float(), labels[known])
            if anchored:
                says = logits[settings.new :][kept].float().log_softmax(-1)
                loss = loss + settings.anchor * F.kl_div(says, said, reduction="batchmean", log_target=True)
            loss.backward()
    torch.nn.utils.clip_grad_norm_(blend.parameters, settings.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
