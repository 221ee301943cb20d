"""Sizes of the experts and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class ExpertPreset:
    """A size of GPT and its training.

    Attributes:
        layers, width, heads: of the GPT; a head has width / heads numbers.
        context: the longest record in tokens, prompt and completion together.
        vocab_size: of the shared tokenizer.
        dropout: after the embeddings and after each block's two parts; none inside attention, where it would keep torch
            from its fused kernel.
        batch_size: records in a batch.
        learning_rate: the highest one, of AdamW.
        weight_decay: of AdamW.
        draws: how often a generated domain is drawn; more draws, more different problems.
        evaluations: in a whole run.
        patience: evaluations without a better one before an expert stops.
        aversion: weight of the unlikelihood of saying something again, for the domains of `AVERSE`.
        precision: "float32", or "bfloat16" for the products (weights and sums stay in float32).
    """

    layers: int
    width: int
    heads: int
    context: int = 256
    vocab_size: int = 4096
    dropout: float = 0.1
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    draws: int = 3
    evaluations: int = 12
    patience: int = 3
    aversion: float = 4.0
    precision: str = "bfloat16"


PRESETS: dict[str, ExpertPreset] = {
    "small": ExpertPreset(layers=3, width=192, heads=3),
    "medium": ExpertPreset(layers=6, width=384, heads=6, learning_rate=1e-3),
    # What is initialized from a trained model has its shape already, and much less to learn.
    "init": ExpertPreset(layers=0, width=0, heads=0, learning_rate=1e-4, draws=1, batch_size=16, weight_decay=0.01),
}
# Optimizer steps of an expert: about as many passes over its records as help.
STEPS: dict[str, int] = {"math": 1300, "reasoning": 1300, "code": 600, "conversation": 500, "knowledge": 500}
# Prose and programs, whose experts would loop: there is too little of either for experts of this size to be certain of
# much, and what was just said is then the likeliest. After their steps these learn, for half as many, not to repeat
# themselves (see `objective`, `loops` and `own_loops`). From the beginning it would slow all other learning.
AVERSE = ("code", "knowledge")
AVERSE_SHARE = 0.5


def expert_preset(name: str, **changes: object) -> ExpertPreset:
    """Returns a preset, with changes of those values that are not None.

    Raises:
        ValueError: an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"hierarchical: preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})  # type: ignore[arg-type]
