"""The interface of every predictor.

Letters: T tokens of one forward pass, E experts of a layer, K experts per token, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What is known when a layer has been routed and its experts have not run yet.

    Args:
        layer: position of the layer among the MoE layers, from 0.
        experts: (T, K) integer, the experts chosen; an id of E or more stands for "none".
        residual: (T, H) floating, the residual stream that entered this layer's norm and gate; None in a replay.
    """

    layer: int
    experts: np.ndarray
    residual: Tensor | None = None


class Predictor(Protocol):
    """Gives each expert of a coming layer the probability that it will be used there next."""

    def reset(self) -> None:
        """Forget the sequence, keep what was learned."""

    def observe(self, observation: Observation) -> None:
        """Take note of a layer that was just routed."""

    def predict(self, layer: int) -> np.ndarray | None:
        """Return (E,) float probabilities for the next visit of `layer`; None when nothing is known of it.

        With several tokens in a pass, it is the probability that any of them uses the expert.
        """
