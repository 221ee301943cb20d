"""Asking a predictor along a recorded trace, as an engine would.

Letters: N tokens, L layers, E experts, K experts per token.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..predictor import Observation, Predictor, RanksExperts, SeesTokens
from ..traces import RouteTrace


@dataclass(frozen=True)
class Replayed:
    """What a predictor said.

    Args:
        chances: (N, L, E) float32 probabilities of use; 0 where it knew nothing.
        heaviest: (N, L, E) float32 probabilities of the largest weight; None where it has no opinion of its own.
        keep: (N, L, E) float32, after each visit, how soon each expert is used again; None likewise.
        seconds: of all calls, for each layer and token; a median over tokens.
    """

    chances: np.ndarray
    heaviest: np.ndarray | None
    keep: np.ndarray | None
    seconds: float


def replay(
    predictor: Predictor,
    trace: RouteTrace,
    *,
    keep: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Ask a predictor about every layer of every token, one token a pass.

    What is timed is what an engine calls: `begin`, `predict` and `observe`; not `heaviest` and `keep`.

    Args:
        predictor: it is reset at each sequence.
        trace: the routes, none of them from the sequences that it learned from.
        keep: also ask what is worth keeping.
        progress: called with (tokens done, tokens).
    """
    N, L, _ = trace.experts.shape
    E = trace.num_experts
    chances = np.zeros((N, L, E), dtype=np.float32)
    opinion = getattr(predictor, "heaviest", None)
    heaviest = np.zeros((N, L, E), dtype=np.float32) if opinion is not None else None
    kept = np.zeros((N, L, E), dtype=np.float32) if keep and isinstance(predictor, RanksExperts) else None
    first = trace.first_tokens
    spent = np.zeros(N)
    clock = time.perf_counter
    experts = trace.experts.astype(np.int64)
    weights = None if trace.weights is None else trace.weights.astype(np.float32)
    for n in range(N):
        if first[n]:
            predictor.reset()
        begin = clock()
        if trace.tokens is not None and isinstance(predictor, SeesTokens):
            predictor.begin(trace.tokens[n : n + 1])
        spent[n] += clock() - begin
        for layer in range(L):
            seen = Observation(
                layer,
                experts[n, layer][None],
                None if trace.residuals is None else _tensor(trace.residuals[n, layer]),
                None if weights is None else weights[n, layer][None],
                None if trace.shared is None else _tensor(trace.shared[n, layer]),
            )
            begin = clock()
            said = predictor.predict(layer)
            spent[n] += clock() - begin
            if said is not None:
                chances[n, layer] = said
            if heaviest is not None and opinion is not None and (best := opinion(layer)) is not None:
                heaviest[n, layer] = best[0]
            begin = clock()
            predictor.observe(seen)
            spent[n] += clock() - begin
            if kept is not None and isinstance(predictor, RanksExperts):
                worth = predictor.keep(layer)
                if worth is not None:
                    kept[n, layer] = worth
        if progress is not None and n % 500 == 0:
            progress(n, N)
    return Replayed(chances, heaviest, kept, float(np.median(spent)) / L if N else 0.0)


def _tensor(values: np.ndarray):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(values[None]).float()
