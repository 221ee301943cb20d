"""Which experts appear where.

Letters: N tokens, E experts, K experts per token.
"""

from __future__ import annotations

import numpy as np


def used_by_any(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Return (E,) bool: which experts appear in (..., K); ids of E or more are "none"."""
    counts = np.bincount(experts.reshape(-1), minlength=num_experts)
    return counts[:num_experts] > 0


def membership(experts: np.ndarray, num_experts: int) -> np.ndarray:
    """Return (..., E) float32 from (..., K): 1 where the token uses the expert; ids of E or more are "none"."""
    table = np.zeros((*experts.shape[:-1], num_experts + 1), dtype=np.float32)
    np.put_along_axis(table, np.minimum(experts, num_experts).astype(np.int64), 1.0, axis=-1)
    return table[..., :-1]


def log_odds(p: np.ndarray) -> np.ndarray:
    """Return log(p / (1 - p)), for p kept away from 0 and 1."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.log(p) - np.log1p(-p)


def any_of(chances: np.ndarray) -> np.ndarray:
    """Return (E,): the probability that any of the tokens (T, E) uses the expert, as if they were independent."""
    return chances[0] if len(chances) == 1 else 1.0 - np.prod(1.0 - chances, axis=0)
