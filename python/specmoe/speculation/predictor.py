"""The interface of every predictor.

Letters: T tokens of one forward pass, E experts of a layer, K experts per token, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Observation:
    """What is known when a layer has been routed and its experts have not run yet.

    Args:
        layer: position of the layer among the MoE layers, from 0.
        experts: (T, K) integer, the experts chosen; an id of E or more stands for "none".
        residual: (T, H) floating, the residual stream that entered this layer's norm and gate; None in a replay.
        weights: (T, K) floating, the routing weights in the order of `experts`; None where nobody hands them on.
        shared: (T, H) floating, the output of this layer's shared expert, where it has run already; else None.
    """

    layer: int
    experts: np.ndarray
    residual: Tensor | None = None
    weights: np.ndarray | None = None
    shared: Tensor | None = None


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


@runtime_checkable
class SeesTokens(Protocol):
    """A predictor that knows the tokens of a pass before its first layer, from the time that they are sampled."""

    def begin(self, tokens: np.ndarray) -> None:
        """A pass over these tokens (T,) begins. Without this call the pass is predicted from the past alone."""


@runtime_checkable
class RanksExperts(Protocol):
    """A predictor that can also say which experts of a layer are worth keeping."""

    def keep(self, layer: int) -> np.ndarray | None:
        """Return (E,) in [0, 1]: how soon each expert is expected to be used again after the layer's last visit.

        1 is the next token; the scale is the same for all layers, so that they may share slots. The resident expert
        with the smallest value is the one to evict. None when the layer was not visited yet.
        """
