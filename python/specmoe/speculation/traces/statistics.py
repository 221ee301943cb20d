"""What a trace is like: sizes, and how much of the next choice the last ones tell.

Letters: N tokens, L layers, K experts per token, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .trace import RouteTrace


@dataclass(frozen=True)
class TraceStatistics:
    """Figures of a trace.

    Args:
        sequences, tokens, layers, experts, top_k: its sizes.
        shortest, median, longest: tokens of a sequence.
        repeated: (L,), the share of a token's experts that the token before used in the same layer.
        entropy: (L,), entropy of the use of experts, as a share of that of a uniform one.
        has: names of what was recorded beside the experts.
    """

    sequences: int
    tokens: int
    layers: int
    experts: int
    top_k: int
    shortest: int
    median: int
    longest: int
    repeated: np.ndarray
    entropy: np.ndarray
    has: tuple[str, ...]


def describe(trace: RouteTrace) -> TraceStatistics:
    """Return the figures of a trace."""
    N, L, K = trace.experts.shape
    E = trace.num_experts
    lengths = np.diff(trace.starts)
    follows = np.flatnonzero(~trace.first_tokens)
    repeated, entropy = np.zeros(L), np.zeros(L)
    for layer in range(L):
        ids = trace.experts[:, layer].astype(np.int64)
        if len(follows):
            same = (ids[follows][:, :, None] == ids[follows - 1][:, None, :]).any(2)
            repeated[layer] = same.mean()
        share = np.bincount(ids[ids < E].ravel(), minlength=E)[:E] / max(1, (ids < E).sum())
        seen = share[share > 0]
        entropy[layer] = -(seen * np.log(seen)).sum() / np.log(max(2, E))
    names = {"weights": "weights", "tokens": "tokens", "residuals": "residual streams", "shared": "shared experts"}
    has = tuple(name for field, name in names.items() if getattr(trace, field) is not None)
    return TraceStatistics(
        len(trace), N, L, E, K, int(lengths.min()), int(np.median(lengths)), int(lengths.max()), repeated, entropy, has
    )
