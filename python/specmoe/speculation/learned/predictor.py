"""Asking a network of the learned family.

Letters: N tokens, L layers, E experts, T tokens of a pass, P positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..counting import membership
from ..counting.membership import any_of
from ..predictor import Observation
from ..traces import RouteTrace
from .data import Samples
from .training import LearnedRun


class LearnedPredictor:
    """Probabilities from a transformer over the path and the earlier tokens.

    Args:
        run: a trained network, from `train_learned` or `load_learned`.
        layers: L.
        experts: E.
    """

    def __init__(self, run: LearnedRun, layers: int, experts: int) -> None:
        self._model, self._settings = run.model, run.settings
        self._L, self._E = layers, experts
        self._depth = max(run.settings.tokens, *run.settings.scales, 1)
        self.reset()

    def reset(self) -> None:
        # The last tokens of each layer, newest last; and the layers of the pass under way.
        self._past: list[np.ndarray] = [np.zeros((0, self._E), dtype=np.float32) for _ in range(self._L)]
        self._path: dict[int, np.ndarray] = {}

    def observe(self, observation: Observation) -> None:
        layer = observation.layer
        used = membership(np.asarray(observation.experts), self._E)
        if layer == 0 or any(len(u) != len(used) for u in self._path.values()):
            self._path.clear()
        self._path[layer] = used
        self._past[layer] = np.concatenate([self._past[layer], used])[-self._depth :]

    @torch.no_grad()
    def predict(self, layer: int) -> np.ndarray | None:
        if layer >= self._L or (not self._path and not len(self._past[layer])):
            return None
        s, E = self._settings, self._E
        # Layer 0 belongs to the next token, whose path is empty.
        path = self._path if layer else {}
        T = len(next(iter(path.values()))) if path else 1
        sets = np.zeros((T, s.path + s.tokens + len(s.scales), E), dtype=np.float32)
        where = np.full(sets.shape[:2], layer)
        exists = np.zeros(sets.shape[:2], dtype=bool)
        for i in range(s.path):
            where[:, i] = max(0, layer - 1 - i)
            if (before := path.get(layer - 1 - i)) is not None:
                sets[:, i], exists[:, i] = before, True
        past = self._past[layer]
        for i in range(min(s.tokens, len(past))):
            sets[:, s.path + i], exists[:, s.path + i] = past[-1 - i], True
        for i, window in enumerate(s.scales):
            if len(past):
                sets[:, s.path + s.tokens + i] = past[-window:].mean(0)
                exists[:, s.path + s.tokens + i] = True
        layers = torch.full((T,), layer)
        score = self._model(torch.from_numpy(sets), torch.from_numpy(where), torch.from_numpy(exists), layers)
        return any_of(score.sigmoid().double().numpy())


@torch.no_grad()
def chances_of(run: LearnedRun, trace: RouteTrace, batch: int = 4096) -> np.ndarray:
    """Return (N, L, E) float32: what `LearnedPredictor` says along a trace, computed in batches."""
    samples = Samples.of(trace, run.settings)
    N, L, E = samples.used.shape
    chances = np.zeros((N * L, E), dtype=np.float32)
    every = torch.arange(N * L)
    for part in every.split(batch):
        tokens, layers = part // L, part % L
        inputs: tuple[Tensor, Tensor, Tensor] = samples.cut(tokens, layers, run.settings)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            score = run.model(*inputs, layers)
        chances[part.numpy()] = score.float().sigmoid().numpy()
    return chances.reshape(N, L, E)
