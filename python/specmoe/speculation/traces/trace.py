"""Recorded routes: which experts every token of a set of sequences used, and with which weights.

Letters: N tokens, L layers, K experts per token, E experts, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class RouteTrace:
    """Routes of several sequences, laid end to end.

    Args:
        experts: (N, L, K) integer ids, largest weight first; an id of E or more stands for "none".
        starts: (sequences + 1) int64, half-open bounds of the sequences; each comes from one prompt.
        num_experts: E.
        weights: (N, L, K) floating routing weights in the order of `experts`; None where they were not recorded.
        tokens: (N,) integer id of the token that was routed, by the trace's own numbering; None likewise.
        residuals: (N, L, H) floating, the residual stream that entered each layer's norm and gate; None likewise.
        shared: (N, L, H) floating, the output of each layer's shared expert; None likewise.
        labels: (sequences,) text, where each sequence comes from; None likewise.
    """

    experts: np.ndarray
    starts: np.ndarray
    num_experts: int
    weights: np.ndarray | None = None
    tokens: np.ndarray | None = None
    residuals: np.ndarray | None = None
    shared: np.ndarray | None = None
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def first_tokens(self) -> np.ndarray:
        """(N,) bool: where a sequence begins."""
        first = np.zeros(len(self.experts), dtype=bool)
        first[self.starts[:-1]] = True
        return first

    def sequence(self, index: int) -> np.ndarray:
        """Return the routes (n, L, K) of one sequence."""
        return self.experts[self.starts[index] : self.starts[index + 1]]

    def take(self, indices: np.ndarray) -> RouteTrace:
        """Return the sequences named, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        bounds = [(int(self.starts[i]), int(self.starts[i + 1])) for i in indices]
        starts = np.cumsum([0, *(end - begin for begin, end in bounds)])

        def rows(values: np.ndarray | None) -> np.ndarray | None:
            if values is None:
                return None
            return np.concatenate([values[begin:end] for begin, end in bounds]) if bounds else values[:0]

        experts = rows(self.experts)
        assert experts is not None
        labels = None if self.labels is None else self.labels[indices]
        return RouteTrace(
            experts,
            starts,
            self.num_experts,
            rows(self.weights),
            rows(self.tokens),
            rows(self.residuals),
            rows(self.shared),
            labels,
        )

    def layers(self, first: int, count: int) -> RouteTrace:
        """Return the same sequences over `count` consecutive layers."""
        part = slice(first, first + count)

        def cut(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[:, part]

        return replace(
            self,
            experts=self.experts[:, part],
            weights=cut(self.weights),
            residuals=cut(self.residuals),
            shared=cut(self.shared),
        )

    def split(self, held_out: float, seed: int = 0) -> tuple[RouteTrace, RouteTrace]:
        """Part whole sequences at random into (kept, held out); windows of one sequence never meet on both sides."""
        if len(self) < 2 or not 0 < held_out < 1:
            raise ValueError(
                f"split: expected at least 2 sequences and a share in (0, 1), got {len(self)} and {held_out}"
            )
        order = np.random.default_rng(seed).permutation(len(self))
        count = min(max(1, round(held_out * len(self))), len(self) - 1)
        return self.take(np.sort(order[count:])), self.take(np.sort(order[:count]))
