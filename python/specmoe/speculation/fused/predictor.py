"""Asking the fused predictor, one layer at a time.

What a token's past tells all layers is computed when the token begins; a layer's visit adds the rows of its experts to
the stream and to the scores of later layers; a prediction is one small perceptron and one product. NumPy, one core.

Letters: T tokens of a pass, L layers, E experts, K experts per token.
"""

from __future__ import annotations

import math

import numpy as np

from ..counting.membership import any_of, membership
from ..predictor import Observation
from .batch import spread_weights
from .history import History, keep_features, log_averages
from .native import native_layers
from .network import EPSILON
from .similar import SequenceMemory, vote_features
from .weights import FusedWeights


class FusedPredictor:
    """Calibrated probabilities from path, previous token, averages, similar tokens and the token itself.

    It adapts while it runs: each outcome moves its expert's bias and its layer's scale a little.

    Args:
        weights: what `train_fused` returned.
        adapt: how far an outcome moves a bias; 0 to leave the weights as they are.
        use_native: run passes of one token in the native core, where it is built; with bfloat16 weights.
    """

    def __init__(self, weights: FusedWeights, adapt: float = 0.02, use_native: bool = True) -> None:
        w = self._w = weights
        L, E = w.layers, w.experts
        self._L, self._E, self._adapt = L, E, adapt
        self._history = History(L, E, w.settings.decays)
        self._memory = SequenceMemory(L, E, w.settings)
        self._factors = np.ones(2 * max(E, w.top_k), dtype=np.float32)
        # Per source layer: rows of what an expert adds to the stream and to the scores of later layers.
        self._steps = [_step_table(w, n) for n in range(L)]
        width = w.settings.width
        self._past = np.concatenate([w.from_past, w.enter_previous, w.plain_previous], axis=2)
        self._cuts = (width, 2 * width)
        self._each = np.arange(L)[:, None]
        self._shift = np.zeros((L, E), dtype=np.float32)
        self._scale = w.scale.astype(np.float32).copy()
        self._ranks = w.ranks[None]
        self._latest: np.ndarray | None = None
        # Of the pass under way: `_start` sets them.
        self._T = self._layer = 0
        self._ids, self._given = np.zeros((0, 0, 0), dtype=np.int64), np.zeros((0, 0, 0), dtype=np.float32)
        self._buffers(L, E, width)
        self._native = native_layers(w, self._steps, self._native_state()) if use_native else None
        self.reset()

    def _buffers(self, L: int, E: int, width: int) -> None:
        """Make what a pass of one token works in; it stays where it is."""
        self._one_stream = np.zeros((1, width), dtype=np.float32)
        self._one_scores = np.zeros((L, 1, 2 * E), dtype=np.float32)
        self._one_enter = np.zeros((L, width), dtype=np.float32)
        self._chances = np.zeros(E, dtype=np.float32)
        self._one_ids = np.zeros(self._w.top_k, dtype=np.int64)
        self._one_given = np.zeros(self._w.top_k, dtype=np.float32)
        self._keep_x = np.zeros((len(self._w.settings.decays) + 3, E), dtype=np.float32)
        self._keep_first = np.concatenate([self._w.keep_plain, self._w.keep_up], axis=2)

    def _native_state(self) -> list[np.ndarray]:
        memory = self._memory
        return [
            *(self._one_stream, self._one_scores, self._one_enter, memory.one_start, memory.one_alike),
            *(memory.members, memory.weights, memory.keys, self._scale, self._shift),
            *(self._chances, self._one_ids, self._one_given),
        ]

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
        layer, experts = observation.layer, observation.experts
        T = len(experts)
        if layer >= self._L or not T:
            return
        if not self._open or self._T != T or layer != self._layer:
            if layer != 0:
                # Part of a pass was not seen: nothing is predicted before the next one begins.
                self._open = False
                return
            self._start(None, T)
        self._forward(layer)
        given = self._ranks if observation.weights is None else observation.weights
        self._ids[layer], self._given[layer] = self._fitting(experts, given)
        if self._native is not None and T == 1:
            self._one_ids[:], self._one_given[:] = self._ids[layer, 0], self._given[layer, 0]
            self._native.take(layer, self._memory.count, len(self._one_ids))
        else:
            for t in range(T):
                self._take(layer, t, self._ids[layer, t], self._given[layer, t])
        self._layer = layer + 1
        if self._layer == self._L:
            self._finish()

    def predict(self, layer: int) -> np.ndarray | None:
        scores = self._asked(layer)
        if scores is None:
            return None
        if self._native is not None and self._T == 1:
            self._native.read(layer)
            return self._chances.astype(np.float64)
        z = scores[:, : self._E] * self._scale[layer]
        z += self._shift[layer]
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
        w, E = self._w, self._E
        if self._open and layer < self._layer:
            ids, given = self._ids[layer, -1], self._given[layer, -1]
            if (ids >= E).any():
                ids, given = ids[ids < E], given[ids < E]
            x = self._history.features_after(layer, ids, given, self._keep_x)
        elif self._latest is not None:
            x = keep_features(self._history.averages[:, layer], self._history.since[layer], self._latest[layer])
        else:
            return None
        both = x @ self._keep_first[layer]
        z = np.maximum(both[E:], 0.0) @ w.keep_down[layer]
        z += both[:E]
        z += w.keep_bias[layer]
        return 1.0 / (1.0 + np.exp(-z))

    def _asked(self, layer: int) -> np.ndarray | None:
        """Return scores (T, 2E) of the coming layer; None for any other."""
        if not self._open and layer == 0:
            self._start(None, 1)
        if not self._open or layer != self._layer or layer >= self._L:
            return None
        return self._forward(layer)

    def _start(self, tokens: np.ndarray | None, count: int) -> None:
        """Compute what all layers know before the first."""
        w = self._w
        self._open, self._T, self._layer, self._done = True, count, 0, -1
        self._tokens = tokens
        rows = np.zeros(count, dtype=np.int64)
        if tokens is not None and len(w.known):
            at = np.minimum(np.searchsorted(w.known, tokens), len(w.known) - 1)
            rows = np.where(w.known[at] == tokens, at + 1, 0)
        self._rows = rows
        before = np.concatenate([[self._previous_token], rows[:-1]])
        embedded = np.concatenate([w.token[rows], w.token[before]], axis=1)
        stream = embedded @ w.from_token
        averages = log_averages(self._history.averages).transpose(1, 0, 2).reshape(self._L, 1, -1)
        scores = np.repeat(w.bias[:, None] + averages @ w.plain_averages, count, axis=1)
        self._one_enter[:] = 0.0
        # Of all tokens of a pass, only the first one's predecessor is known.
        if self._previous is not None:
            experts, factors = self._previous
            past = np.matmul(factors[:, None], self._past[self._each, experts])[:, 0]
            a, b = self._cuts
            stream[0] += past[:, :a].sum(0)
            self._one_enter[:] = past[:, a:b]
            scores[:, 0] += past[:, b:]
        if count == 1:
            self._one_stream[:], self._one_scores[:] = stream, scores
            stream, scores = self._one_stream, self._one_scores
        self._stream, self._scores = stream, scores
        self._memory.begin(tokens, count)
        self._ids = np.full((self._L, count, w.top_k), self._E, dtype=np.int64)
        self._given = np.zeros((self._L, count, w.top_k), dtype=np.float32)

    def _forward(self, layer: int) -> np.ndarray:
        """Run the layer's perceptron, once, and return its scores (T, 2E)."""
        if self._done == layer:
            return self._scores[layer]
        w, stream = self._w, self._stream
        if self._native is not None and self._T == 1:
            self._native.forward(layer, self._memory.count)
            self._done = layer
            return self._scores[layer]
        members, weights = self._memory.votes(layer)
        stream += members @ w.enter_votes[layer]
        stream[0] += self._one_enter[layer]
        hidden = stream @ w.up[layer]
        hidden *= _inverse_rms(stream)
        hidden += w.up_bias[layer]
        np.maximum(hidden, 0.0, out=hidden)
        stream += hidden @ w.down[layer]
        scores = self._scores[layer]
        read = stream @ w.out[layer]
        read *= _inverse_rms(stream)
        scores += read
        scores += vote_features(members, weights) @ w.plain_votes[layer]
        self._done = layer
        return scores

    def _take(self, layer: int, t: int, experts: np.ndarray, weights: np.ndarray) -> None:
        """Add what a token's routing (K,) tells the later layers."""
        E = self._E
        if (experts >= E).any():
            known = experts < E
            experts, weights = experts[known], weights[known]
        count = len(experts)
        factors = self._factors[: 2 * count]
        np.multiply(weights, 4.0, out=factors[1::2])
        step = factors @ self._steps[layer].take(experts, axis=0).reshape(2 * count, -1)
        width = self._stream.shape[1]
        self._stream[t] += step[:width]
        if layer + 1 < self._L:
            self._scores[layer + 1 :, t] += step[width:].reshape(-1, 2 * E)
        self._memory.compare(layer, t, experts, weights / max(math.sqrt(float(weights @ weights)), 1e-6))

    def _fitting(self, experts: np.ndarray, given: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and weights (T, K) of the width that the predictor was trained with."""
        K = self._w.top_k
        if experts.shape[1] == K:
            return experts, given
        if experts.shape[1] > K or given.shape[1] != experts.shape[1]:
            raise ValueError(f"FusedPredictor: experts: expected at most K={K} a token, got {experts.shape[1]}")
        more = ((0, 0), (0, K - experts.shape[1]))
        return np.pad(experts, more, constant_values=self._E), np.pad(given, more)

    def _finish(self) -> None:
        """The pass is over: it becomes the past."""
        used = membership(self._ids, self._E)
        weights = spread_weights(self._ids, self._given, self._E)
        if self._adapt and self._T == 1:
            self._learn(used[:, 0])
        self._memory.add(self._tokens, used, weights)
        for t in range(self._T):
            self._history.add(used[:, t])
        self._latest = weights[:, -1]
        ids = self._ids[:, -1]
        rows = np.where(ids < self._E, ids, 0)
        factors = np.concatenate([np.ones_like(self._given[:, -1]), 4.0 * self._given[:, -1]], axis=1)
        factors *= np.concatenate([ids, ids], axis=1) < self._E
        self._previous = np.concatenate([rows, self._E + rows], axis=1), factors
        self._previous_token = int(self._rows[-1])
        self._open = False

    def _learn(self, used: np.ndarray) -> None:
        """Move biases and scales along the gradient of the cross-entropy of the token that was just routed."""
        scores = self._scores[:, 0, : self._E]
        z = scores * self._scale[:, None] + self._shift
        error = used - 1.0 / (1.0 + np.exp(-z))
        self._shift += self._adapt * error
        slope = np.clip((error * z).mean(1), -1.0, 1.0)
        self._scale *= np.exp(0.1 * self._adapt * slope)


def _inverse_rms(stream: np.ndarray) -> np.ndarray | float:
    """Return (T, 1), or a number for one row: one over the root mean square of each."""
    if len(stream) == 1:
        row = stream[0]
        return 1.0 / math.sqrt(float(row @ row) / len(row) + EPSILON)
    return 1.0 / np.sqrt((stream * stream).sum(1, keepdims=True) / stream.shape[1] + EPSILON)


def _step_table(w: FusedWeights, layer: int) -> np.ndarray:
    """Return (E, 2, W + later layers * 2E): what each expert of a layer adds to the stream of the next, and to scores.

    The first of two rows is added for being used, the second times four times the routing weight.
    """
    E, L = w.experts, w.layers
    later = w.links[layer, :, layer + 1 :].reshape(2 * E, -1)
    stream = w.enter_path[layer + 1] if layer + 1 < L else np.zeros((2 * E, w.settings.width), dtype=np.float32)
    table = np.concatenate([stream, later], axis=1).reshape(2, E, -1).transpose(1, 0, 2)
    return np.ascontiguousarray(table, dtype=np.float32)
