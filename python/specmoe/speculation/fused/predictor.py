"""Asking the fused predictor, one layer at a time.

What a token's past tells all layers is computed when the token begins; a layer's visit adds the rows of its experts to
the stream and to the scores of later layers; a prediction is one small perceptron and one product. NumPy, one core.

Letters: T tokens of a pass, L layers, E experts, K experts per token.
"""

from __future__ import annotations

import math

import numpy as np

from ..counting import membership
from ..counting.membership import any_of
from ..predictor import Observation
from .batch import spread_weights
from .history import History, keep_features, log_averages
from .network import EPSILON
from .similar import SequenceMemory, directions, vote_features
from .weights import FusedWeights


class FusedPredictor:
    """Calibrated probabilities from path, previous token, averages, similar tokens and the token itself.

    It adapts while it runs: each outcome moves its expert's bias and its layer's scale a little.

    Args:
        weights: what `train_fused` returned.
        adapt: how far an outcome moves a bias; 0 to leave the weights as they are.
    """

    def __init__(self, weights: FusedWeights, adapt: float = 0.02) -> None:
        w = self._w = weights
        L, E = w.layers, w.experts
        self._L, self._E, self._adapt = L, E, adapt
        self._history = History(L, E, w.settings.decays)
        self._memory = SequenceMemory(L, E, w.settings)
        # Per source layer: rows of what an expert adds to the stream and to the scores of later layers.
        self._steps = [_step_table(w, n) for n in range(L)]
        width = w.settings.width
        self._past = np.concatenate([w.from_past, w.enter_previous, w.plain_previous], axis=2)
        self._cuts = (width, 2 * width)
        self._shift = np.zeros((L, E), dtype=np.float32)
        self._log_scale = np.log(w.scale).astype(np.float32)
        self._latest: list[np.ndarray | None] = [None] * L
        self.reset()

    def reset(self) -> None:
        self._history.reset()
        self._memory.reset()
        self._previous: tuple[np.ndarray, np.ndarray] | None = None
        self._previous_token = 0
        self._open = False

    def begin(self, tokens: np.ndarray) -> None:
        """Take note of the tokens (T,) of the coming pass."""
        ids = np.asarray(tokens).reshape(-1)
        if len(ids):
            self._start(ids, len(ids))

    def observe(self, observation: Observation) -> None:
        layer, experts = observation.layer, np.asarray(observation.experts)
        T = len(experts)
        if layer >= self._L or not T:
            return
        if not self._open or self._T != T or layer != self._layer:
            if layer != 0:
                # Part of a pass was not seen: nothing is predicted before the next one begins.
                self._open = False
                return
            self._start(None, T)
        given = self._w.ranks[None] if observation.weights is None else observation.weights
        used = membership(experts, self._E)
        weights = spread_weights(experts, np.broadcast_to(given, experts.shape), self._E)
        if self._adapt and self._scored == layer and T == 1:
            self._learn(layer, used[0])
        self._forward(layer)
        self._take(layer, experts, used, weights)
        self._layer = layer + 1
        if self._layer == self._L:
            self._finish()

    def predict(self, layer: int) -> np.ndarray | None:
        scores = self._asked(layer)
        if scores is None:
            return None
        z = scores[:, : self._E] * math.exp(self._log_scale[layer]) + self._shift[layer]
        self._z = z[0]
        self._scored = layer
        return any_of(1.0 / (1.0 + np.exp(-z)))

    def heaviest(self, layer: int) -> np.ndarray | None:
        """Return (T, E): the probability that each expert has the largest weight at the next visit of `layer`."""
        scores = self._asked(layer)
        if scores is None:
            return None
        z = np.exp(scores[:, self._E :] - scores[:, self._E :].max(1, keepdims=True))
        return z / z.sum(1, keepdims=True)

    def keep(self, layer: int) -> np.ndarray | None:
        """Return (E,): how soon each expert will be used again, as `RanksExperts` wants it."""
        latest = self._latest[layer]
        if latest is None:
            return None
        w = self._w
        x = keep_features(self._history.averages[:, layer], self._history.since[layer], latest)
        hidden = np.maximum(x @ w.keep_up[layer], 0.0)
        return 1.0 / (1.0 + np.exp(-(x @ w.keep_plain[layer] + hidden @ w.keep_down[layer] + w.keep_bias[layer])))

    def _asked(self, layer: int) -> np.ndarray | None:
        """Return scores (T, 2E) of the coming layer; None for any other."""
        if not self._open and layer == 0:
            self._start(None, 1)
        if not self._open or layer != self._layer or layer >= self._L:
            return None
        return self._forward(layer)

    def _start(self, tokens: np.ndarray | None, count: int) -> None:
        """Compute what all layers know before the first."""
        w, E = self._w, self._E
        self._open, self._T, self._layer, self._scored, self._done = True, count, 0, -1, -1
        self._tokens = tokens
        rows = np.zeros(count, dtype=np.int64)
        if tokens is not None and len(w.known):
            at = np.minimum(np.searchsorted(w.known, tokens), len(w.known) - 1)
            rows = np.where(w.known[at] == tokens, at + 1, 0)
        self._rows = rows
        before = np.concatenate([[self._previous_token], rows[:-1]])
        embedded = np.concatenate([w.token[rows], w.token[before]], axis=1)
        self._stream = embedded @ w.from_token
        averages = log_averages(self._history.averages).transpose(1, 0, 2).reshape(self._L, 1, -1)
        # Of all tokens of a pass, only the first one's predecessor is known.
        self._scores = np.repeat(w.bias[:, None] + averages @ w.plain_averages, count, axis=1)
        self._enter: np.ndarray | None = None
        if self._previous is not None:
            experts, factors = self._previous
            past = np.einsum("lk,lkw->lw", factors, self._past[np.arange(self._L)[:, None], experts])
            a, b = self._cuts
            self._stream[0] += past[:, :a].sum(0)
            self._enter = past[:, a:b]
            self._scores[:, 0] += past[:, b:]
        self._memory.begin(tokens, count)
        self._pass: tuple[np.ndarray, np.ndarray, np.ndarray] = tuple(  # type: ignore[assignment]
            np.zeros((self._L, count, E), dtype=np.float32) for _ in range(3)
        )

    def _forward(self, layer: int) -> np.ndarray:
        """Run the layer's perceptron, once, and return its scores (T, 2E)."""
        if self._done == layer:
            return self._scores[layer]
        w, stream = self._w, self._stream
        members, weights = self._memory.votes(layer)
        stream += members @ w.enter_votes[layer]
        if self._enter is not None:
            stream[0] += self._enter[layer]
        hidden = (stream * _inverse_rms(stream)) @ w.up[layer]
        hidden += w.up_bias[layer]
        np.maximum(hidden, 0.0, out=hidden)
        stream += hidden @ w.down[layer]
        scores = self._scores[layer]
        scores += (stream * _inverse_rms(stream)) @ w.out[layer]
        scores += vote_features(members, weights) @ w.plain_votes[layer]
        self._done = layer
        return scores

    def _take(self, layer: int, experts: np.ndarray, used: np.ndarray, weights: np.ndarray) -> None:
        """Add what a layer's routing tells the later ones."""
        w, E = self._w, self._E
        T, K = experts.shape
        for t in range(T):
            picked = np.flatnonzero(used[t])
            rows = self._steps[layer][np.concatenate([picked, E + picked])]
            factors = np.concatenate([np.ones(len(picked), dtype=np.float32), 4.0 * weights[t, picked]])
            step = factors @ rows
            width = w.settings.width
            self._stream[t] += step[:width]
            self._scores[layer + 1 :, t] += step[width:].reshape(-1, 2 * E)
        keys = directions(weights)
        self._memory.compare(layer, keys)
        for table, values in zip(self._pass, (used, weights, keys), strict=True):
            table[layer] = values
        for t in range(T):
            self._history.add(layer, used[t])
        self._latest[layer] = weights[-1]

    def _finish(self) -> None:
        """The pass is over: it becomes the past."""
        used, weights, keys = self._pass
        self._memory.add(self._tokens, used, weights, keys)
        L, E = self._L, self._E
        K = self._w.top_k
        order = np.argsort(-weights[:, -1], axis=1, kind="stable")[:, :K]
        present = np.take_along_axis(used[:, -1], order, axis=1)
        factors = 4.0 * np.take_along_axis(weights[:, -1], order, axis=1)
        self._previous = np.concatenate([order, E + order], axis=1), np.concatenate([present, factors], axis=1)
        assert self._previous[0].shape == (L, 2 * K)
        self._previous_token = int(self._rows[-1])
        self._open = False

    def _learn(self, layer: int, used: np.ndarray) -> None:
        """Move the layer's biases and scale along the gradient of the cross-entropy of what was predicted."""
        error = used - 1.0 / (1.0 + np.exp(-self._z))
        self._shift[layer] += self._adapt * error
        slope = float(error @ self._z) / self._E
        self._log_scale[layer] += 0.1 * self._adapt * max(-1.0, min(1.0, slope))


def _inverse_rms(stream: np.ndarray) -> np.ndarray:
    """Return (T, 1), one over the root mean square of each row."""
    return 1.0 / np.sqrt(np.einsum("tw,tw->t", stream, stream)[:, None] / stream.shape[1] + EPSILON)


def _step_table(w: FusedWeights, layer: int) -> np.ndarray:
    """Return (2E, W + later layers * 2E): what each expert of a layer adds to the stream of the next, and to scores."""
    E, L = w.experts, w.layers
    later = w.links[layer, :, layer + 1 :].reshape(2 * E, -1)
    stream = w.enter_path[layer + 1] if layer + 1 < L else np.zeros((2 * E, w.settings.width), dtype=np.float32)
    return np.ascontiguousarray(np.concatenate([stream, later], axis=1), dtype=np.float32)
