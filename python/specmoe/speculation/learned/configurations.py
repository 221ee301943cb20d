"""The seven named configurations. Parameters are counted for 24 layers of 32 experts."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class LearnedSettings:
    """One configuration of the family.

    Args:
        name: of the configuration.
        width, heads, feed_forward, blocks: of the transformer.
        path: how many earlier layers of the token it sees.
        tokens: how many earlier tokens at the same layer it sees.
        scales: windows of earlier tokens whose mean it sees as well.
        noise: how often a seen set of experts is replaced by another token's.
        mask: how often a position is hidden.
        mix: strength of mixing two samples (the Beta distribution's parameter); 0 for none.
        members: seeds of an ensemble; each is a transformer of its own.
        batch_size, learning_rate, weight_decay, warmup: of AdamW with a cosine schedule.
        steps: of the schedule.
        minutes: the schedule ends after so many, wherever it is; 0 for no limit.
        seed: of weights and batches.
    """

    name: str
    width: int = 192
    heads: int = 6
    feed_forward: int = 592
    blocks: int = 4
    path: int = 4
    tokens: int = 4
    scales: tuple[int, ...] = ()
    noise: float = 0.0
    mask: float = 0.0
    mix: float = 0.0
    members: int = 1
    batch_size: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 500
    steps: int = 60_000
    minutes: float = 0.0
    seed: int = 0


_IMPROVED = LearnedSettings("improved", width=320, heads=10, feed_forward=1280, blocks=5, path=6, tokens=6)

CONFIGURATIONS: dict[str, LearnedSettings] = {
    s.name: s
    for s in (
        LearnedSettings("baseline"),
        LearnedSettings("enhanced", width=512, heads=8, feed_forward=1560, blocks=7, path=8, tokens=8, steps=100_000),
        _IMPROVED,
        replace(_IMPROVED, name="extended", path=12, tokens=16, steps=120_000),
        replace(_IMPROVED, name="multi-scale", tokens=4, scales=(8, 32, 128)),
        replace(_IMPROVED, name="augmented", noise=0.05, mask=0.15, mix=0.2),
        LearnedSettings("ensemble", members=3),
    )
}
PRESETS = ("cpu", "full")


def configuration(name: str, preset: str = "full") -> LearnedSettings:
    """Return a named configuration.

    Args:
        name: one of `CONFIGURATIONS`.
        preset: `full`, or `cpu`, which ends within ten minutes wherever it is.

    Raises:
        ValueError: an unknown name or preset.
    """
    if name not in CONFIGURATIONS:
        raise ValueError(f"learned: name: expected one of {', '.join(CONFIGURATIONS)}, got {name}")
    if preset not in PRESETS:
        raise ValueError(f"learned: preset: expected one of {', '.join(PRESETS)}, got {preset}")
    settings = CONFIGURATIONS[name]
    if preset == "full":
        return settings
    # Small batches: what ten minutes are short of is steps.
    return replace(settings, batch_size=64, steps=16_000, warmup=100, minutes=9.0)
