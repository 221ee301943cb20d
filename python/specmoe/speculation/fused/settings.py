"""What the fused predictor is made of, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FusedSettings:
    """Sizes, signals and schedule of the fused predictor.

    Args:
        width: of the stream that goes through the layers.
        hidden: of each layer's two-layer perceptron.
        token_width: of a token's embedding.
        decays: of the moving averages.
        window: how many earlier tokens of the sequence are compared with the current one.
        fade: what one layer leaves of the similarity of the layers before it.
        carry: what the similarity of the tokens before adds to that of two tokens.
        distance: what each doubling of the distance takes away, divided by log 2.
        sharpness: of the attention to similar tokens; a second one is twice as sharp.
        signals: which of path, links, previous, averages, similar, token are used; the rest is zero.
        context: how many earlier layers of the path are seen; 0 for all.
        epochs, batch_size, learning_rate, weight_decay: the schedule of AdamW.
        drop: how often a layer's signal is hidden in training, so that none is relied on alone.
        token_drop: how often the token is hidden, so that an unknown one is an ordinary case.
        seed: of the weights and the order of training.
    """

    width: int = 192
    hidden: int = 192
    token_width: int = 96
    decays: tuple[float, ...] = (0.5, 0.8, 0.95, 0.98)
    window: int = 256
    fade: float = 0.75
    carry: float = 0.4
    distance: float = 0.15
    sharpness: float = 5.0
    signals: tuple[str, ...] = ("path", "links", "previous", "averages", "similar", "token")
    context: int = 0
    epochs: int = 8
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    drop: float = 0.15
    token_drop: float = 0.15
    seed: int = 0


SIGNALS = FusedSettings().signals
