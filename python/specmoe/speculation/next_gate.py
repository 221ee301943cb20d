"""Next gate: ask the coming layer's own router, one layer early.

The residual stream changes little from one layer to the next, so the next layer's norm and gate, applied to the
current residual, already rank its experts well (Eliseev and Mazur, "Fast inference of mixture-of-experts language
models with offloading", 2023). Two things make it better: the shared expert's output, which is part of the next
residual and is there before the routed experts are, and a correction of low rank, learned from recorded residuals.

Letters: T tokens, E experts, K experts per token, H hidden, R rank, L layers, N tokens of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from .calibration import RankCalibration
from .predictor import Observation
from .traces import RouteTrace

Scorer = Callable[[Tensor], Tensor]


class NextGate:
    """Scores layer l + 1 with its own norm and gate on the residual that entered layer l.

    Args:
        scorers: for each layer, a function from the residual (T, H) to the gate's scores (T, E).
        experts: E.
        top_k: K.
        corrections: for a layer l, what is added to its residual before layer l + 1 is asked; see `fit_corrections`.
    """

    def __init__(
        self,
        scorers: Mapping[int, Scorer],
        experts: int,
        top_k: int,
        corrections: Mapping[int, Correction] | None = None,
    ) -> None:
        self._scorers = dict(scorers)
        self._corrections = dict(corrections or {})
        self._calibration = RankCalibration(max(self._scorers, default=-1) + 1, experts, top_k)
        self._current: tuple[int, Tensor] | None = None

    def reset(self) -> None:
        self._current = None
        self._calibration.reset()

    def observe(self, observation: Observation) -> None:
        layer = observation.layer
        self._calibration.learn(layer, observation.experts)
        residual = observation.residual
        if residual is None or not len(residual):
            self._current = None
            return
        correction = self._corrections.get(layer)
        coming = residual if correction is None else correction(residual)
        if observation.shared is not None:
            coming = coming + observation.shared.to(coming.dtype)
        self._current = (layer, coming)

    def scores(self, layer: int) -> Tensor | None:
        """Return (T, E): the gate's scores of the coming layer; None when its residual is not known."""
        if self._current is None or self._current[0] + 1 != layer or layer not in self._scorers:
            return None
        with torch.no_grad():
            return self._scorers[layer](self._current[1])

    def predict(self, layer: int) -> np.ndarray | None:
        scores = self.scores(layer)
        if scores is None:
            return None
        return self._calibration.probabilities(layer, scores.float().numpy(force=True))


class Correction:
    """What a layer adds to the residual, as far as rank R tells it: residual + (x / rms(x)) A B + mean.

    Args:
        down: (H, R).
        up: (R, H).
        mean: (H,).
    """

    def __init__(self, down: Tensor, up: Tensor, mean: Tensor) -> None:
        self.down, self.up, self.mean = down, up, mean

    def __call__(self, residual: Tensor) -> Tensor:
        x = residual.float()
        change = (_unit(x) @ self.down.to(x.device)) @ self.up.to(x.device) + self.mean.to(x.device)
        return (x + change).to(residual.dtype)


def _unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


def fit_corrections(trace: RouteTrace, rank: int = 32, ridge: float = 0.1) -> dict[int, Correction]:
    """Learn, for each layer, what the residual gains before the next layer asks.

    The gain, less the shared expert's output, is regressed on the normalized residual (ridge regression), and the
    regression is cut to the rank that keeps most of what it predicts on these tokens (reduced-rank regression).

    Args:
        trace: recorded with residual streams, and shared experts' outputs where the model has them.
        rank: R.
        ridge: how strongly the regression is drawn to zero, in units of a token's share.

    Raises:
        ValueError: no residuals were recorded, or the rank is none.
    """
    if trace.residuals is None:
        raise ValueError(
            "fit_corrections: trace: expected residual streams (`specmoe trace record --hidden`), got none"
        )
    N, L, H = trace.residuals.shape
    if not 1 <= rank <= H:
        raise ValueError(f"fit_corrections: rank: expected 1 to H={H}, got {rank}")
    found: dict[int, Correction] = {}
    for layer in range(L - 1):
        x = torch.from_numpy(trace.residuals[:, layer]).float()
        gain = torch.from_numpy(trace.residuals[:, layer + 1]).float() - x
        if trace.shared is not None:
            gain = gain - torch.from_numpy(trace.shared[:, layer]).float()
        mean = gain.mean(0)
        seen, wanted = _unit(x), gain - mean
        gram = seen.T @ seen + ridge * N**0.5 * torch.eye(H)
        full = torch.linalg.solve(gram, seen.T @ wanted)
        _, _, directions = torch.linalg.svd(seen @ full, full_matrices=False)
        up = directions[: min(rank, len(directions))]
        found[layer] = Correction(full @ up.T, up, mean)
    return found
