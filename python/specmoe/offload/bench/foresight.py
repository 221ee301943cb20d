"""What predictors say along recorded routes, noted once and used by every run of a sweep.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from specmoe.speculation import Observation, Predictor, RanksExperts, SeesTokens


@dataclass(frozen=True)
class Chances:
    """What a predictor said along a trace, whatever was in memory.

    Args:
        ahead: (N, L, E): after layer l of token n was routed, the chances for the layer that comes next; NaN: none.
        again: (N, L, E): then too, the chances for layer l itself at its next visit; NaN: none.
        keep: (N, L, E): then too, how soon its experts are used again; None where the predictor does not rank.
    """

    ahead: np.ndarray
    again: np.ndarray
    keep: np.ndarray | None = None


def foresee(
    predictor: Predictor,
    routes: np.ndarray,
    num_experts: int,
    starts: Sequence[int] = (),
    *,
    weights: np.ndarray | None = None,
    tokens: np.ndarray | None = None,
) -> Chances:
    """Run a predictor along routes and note what it says.

    The layer after the last is the next token's first: it is asked for before that token is known.

    Args:
        predictor: it is reset at each sequence.
        routes: (N, L, K).
        num_experts: E.
        starts: the tokens that begin a sequence.
        weights: (N, L, K), the routing weights; None where they are unknown.
        tokens: (N,), token ids; None where they are unknown.
    """
    N, L, _ = routes.shape
    ahead = np.full((N, L, num_experts), np.nan, dtype=np.float32)
    again = ahead.copy()
    ranks = predictor if isinstance(predictor, RanksExperts) else None
    keep = None if ranks is None else ahead.copy()
    begins = set(starts)
    experts = routes.astype(np.int64)
    predictor.reset()
    for token in range(N):
        if token in begins:
            predictor.reset()
        if tokens is not None and isinstance(predictor, SeesTokens):
            predictor.begin(tokens[token : token + 1])
        for layer in range(L):
            given = None if weights is None else weights[token, layer][None].astype(np.float32)
            predictor.observe(Observation(layer, experts[token, layer][None], weights=given))
            if ranks is None or keep is None:
                _note(again[token, layer], predictor.predict(layer))
            else:
                _note(keep[token, layer], ranks.keep(layer))
            _note(ahead[token, layer], predictor.predict((layer + 1) % L))
    return Chances(ahead, again, keep)


def _note(row: np.ndarray, said: np.ndarray | None) -> None:
    if said is not None:
        row[:] = said


def oracle_chances(routes: np.ndarray, num_experts: int) -> Chances:
    """Return certainty about the layer that comes next, and nothing about the one after a whole token."""
    N, L, K = routes.shape
    flat = np.concatenate([routes.reshape(N * L, K)[1:], routes.reshape(N * L, K)[:1]]).astype(np.int64)
    ahead = np.zeros((N * L, num_experts), dtype=np.float32)
    np.put_along_axis(ahead, flat, 1.0, axis=1)
    return Chances(ahead.reshape(N, L, num_experts), np.full((N, L, num_experts), np.nan, dtype=np.float32))


class Foreseen:
    """A predictor that repeats what another one said, and takes its time to.

    Args:
        chances: what was said.
        spend: told the time that each call takes.
        watch, predict: that of being told of a layer, and of answering about the next.
    """

    def __init__(self, chances: Chances, spend: Callable[[float], None], watch: float, predict: float) -> None:
        self._chances = chances
        self._spend, self._watch, self._predict = spend, watch, predict
        self._token = -1
        self._layer = 0

    def at(self, token: int) -> None:
        """Say which token comes, whether or not the predictor is told of it."""
        self._token = token

    def reset(self) -> None:
        """What was said was said."""

    def observe(self, observation: Observation) -> None:
        self._layer = observation.layer
        self._spend(self._watch)

    def predict(self, layer: int) -> np.ndarray | None:
        if layer == self._layer and self._chances.ahead.shape[1] > 1:
            return _said(self._chances.again[self._token, layer])
        self._spend(self._predict)
        return _said(self._chances.ahead[self._token, self._layer])


class ForeseenRanks(Foreseen):
    """The same for one that says what is worth keeping."""

    def keep(self, layer: int) -> np.ndarray | None:
        assert self._chances.keep is not None
        return _said(self._chances.keep[self._token, layer])


def _said(row: np.ndarray) -> np.ndarray | None:
    return None if math.isnan(row[0]) else row
