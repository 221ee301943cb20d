"""The signals of a whole trace at once, for training.

Letters: N tokens, L layers, E experts, D decays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..counting import membership
from ..traces import RouteTrace
from .history import History, keep_features, log_averages
from .settings import FusedSettings
from .similar import sequence_votes, vote_features


@dataclass(frozen=True)
class Signals:
    """What the network reads and what it is asked for, for N tokens.

    Args:
        routed: (N, L, 2E), use and four times the routing weight of each expert; the path, once it is known.
        averages: (N, L, (D + 1) * E), before the token, as `log_averages` gives them.
        votes: (N, L, 3E), the votes for experts, and both sets as `vote_features` gives them.
        after: (N, L, (D + 3) * E), `keep_features` after the token.
        nearness: (N, L, E), exp((1 - tokens until the next use) / horizon), 0 where there is none.
        tokens: (N,) rows of the embedding, 0 for an unknown token.
        follows: (N,) bool, where the token before belongs to the same sequence.
    """

    routed: Tensor
    averages: Tensor
    votes: Tensor
    after: Tensor
    nearness: Tensor
    tokens: Tensor
    follows: Tensor


# Tokens until the next use at which `nearness` is exp(-1): about what an expert stays resident for.
HORIZON = 8.0


def rank_weights(trace: RouteTrace) -> np.ndarray:
    """Return (K,), the mean routing weight of each rank: what a missing weight is taken for."""
    K = trace.experts.shape[2]
    return np.full(K, 1.0 / K) if trace.weights is None else trace.weights.astype(np.float64).mean((0, 1))


def spread_weights(experts: np.ndarray, weights: np.ndarray, num_experts: int) -> np.ndarray:
    """Return (..., E) float32 with each expert's routing weight, from ids and weights (..., K)."""
    table = np.zeros((*experts.shape[:-1], num_experts + 1), dtype=np.float32)
    np.put_along_axis(table, np.minimum(experts, num_experts).astype(np.int64), weights.astype(np.float32), axis=-1)
    return table[..., :-1]


def make_signals(
    trace: RouteTrace,
    tokens: np.ndarray,
    settings: FusedSettings,
    progress: Callable[[str], None] | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> Signals:
    """Compute the signals of a trace, in its order.

    Args:
        trace: the routes.
        tokens: (N,) rows of the embedding.
        settings: decays, window and constants.
        progress: called with what is being done.
        dtype: of the signals.
    """
    N, L, _ = trace.experts.shape
    E = trace.num_experts
    members = membership(trace.experts, E)
    ranks = rank_weights(trace)
    given = np.broadcast_to(ranks, trace.experts.shape) if trace.weights is None else trace.weights
    weights = spread_weights(trace.experts, given, E)
    if progress is not None:
        progress("averages")
    averages, after = _histories(trace, members, weights, settings, dtype)
    if progress is not None:
        progress("similar tokens")
    votes = torch.empty(N, L, 3 * E, dtype=dtype)
    ids = None if trace.tokens is None else torch.from_numpy(trace.tokens.astype(np.int64))
    for begin, end in zip(trace.starts[:-1].tolist(), trace.starts[1:].tolist(), strict=True):
        soft, sharp = sequence_votes(
            torch.from_numpy(weights[begin:end]),
            torch.from_numpy(members[begin:end]),
            None if ids is None else ids[begin:end],
            settings,
        )
        votes[begin:end, :, :E] = soft
        votes[begin:end, :, E:] = torch.from_numpy(vote_features(soft.numpy(), sharp.numpy()))
    routed = torch.empty(N, L, 2 * E, dtype=dtype)
    routed[..., :E] = torch.from_numpy(members)
    routed[..., E:] = 4.0 * torch.from_numpy(weights)
    return Signals(
        routed,
        averages,
        votes,
        after,
        next_uses(members),
        torch.from_numpy(tokens.astype(np.int64)),
        torch.from_numpy(~trace.first_tokens),
    )


def _histories(
    trace: RouteTrace, members: np.ndarray, weights: np.ndarray, settings: FusedSettings, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    N, L, E = members.shape
    D = len(settings.decays)
    history = History(L, E, settings.decays)
    averages = torch.empty(N, L, (D + 1) * E, dtype=dtype)
    after = torch.empty(N, L, (D + 3) * E, dtype=dtype)
    first = trace.first_tokens
    for n in range(N):
        if first[n]:
            history.reset()
        averages[n] = torch.from_numpy(np.concatenate([*log_averages(history.averages)], axis=-1))
        history.add(members[n])
        after[n] = torch.from_numpy(keep_features(history.averages, history.since, weights[n]))
    return averages, after


def next_uses(members: np.ndarray, horizon: float = HORIZON) -> Tensor:
    """Return (N, L, E) bfloat16: how near each expert's next use after each token is, sequences laid end to end."""
    N, L, E = members.shape
    nearness = torch.zeros(N, L, E, dtype=torch.bfloat16)
    at = np.full((L, E), np.inf, dtype=np.float32)
    for n in range(N - 1, -1, -1):
        nearness[n] = torch.from_numpy(np.exp((1.0 - (at - n)) / horizon))
        at[members[n] > 0] = n
    return nearness
