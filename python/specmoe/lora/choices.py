"""Which adapters change which row of a batch, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

# One adapter of each row, and what its delta is multiplied by; None for 1.
Term = tuple[Tensor, Tensor | None]
# What a caller says of a row: an adapter's name, None for the base alone, or several adapters with weights.
RowChoice = str | None | Sequence[tuple[str, float]]


class Adapted(Protocol):
    """A layer with adapters."""

    @property
    def prototypes(self) -> Tensor:
        """(G, in) float32: see `prototype`."""
        ...


class Choice(Protocol):
    """Says what is added to the result of a layer."""

    def terms(self, rows: Tensor, layer: Adapted) -> list[Term]:
        """Returns the terms for a layer.

        Args:
            rows: (N, in) the layer's input, the batch's first row first.
            layer: the layer.

        Returns:
            Pairs of (N) int32 adapters, G for none, and (N) weights or None.
        """
        ...


class RowsChoice:
    """The same adapters for all tokens of a row."""

    def __init__(self, choices: Sequence[RowChoice], names: Sequence[str]) -> None:
        """Reads the choices.

        Args:
            choices: one for each row of a batch; a batch with k times as many rows repeats each k times.
            names: the adapters, in the order of their numbers.

        Raises:
            ValueError: no choices, or an unknown name.
        """
        if not choices:
            raise ValueError("adapters: expected a choice for each row, got none")
        mixed = [_as_pairs(choice) for choice in choices]
        known = {name: number for number, name in enumerate(names)}
        for name, _ in (pair for pairs in mixed for pair in pairs):
            if name not in known:
                raise ValueError(f"adapters: expected one of {', '.join(names)}, got {name!r}")
        self.rows = len(mixed)
        self._terms: list[Term] = []
        for k in range(max(map(len, mixed))):
            pairs = [row[k] if k < len(row) else None for row in mixed]
            groups = [len(names) if pair is None else known[pair[0]] for pair in pairs]
            weights = [0.0 if pair is None else pair[1] for pair in pairs]
            whole = all(pair is None or pair[1] == 1.0 for pair in pairs)
            self._terms.append((torch.tensor(groups, dtype=torch.int32), None if whole else torch.tensor(weights)))
        self._expanded: dict[tuple[int, torch.device], list[Term]] = {}

    def terms(self, rows: Tensor, layer: Adapted) -> list[Term]:
        """Returns each row's terms for every one of its tokens."""
        place = len(rows), rows.device
        if place not in self._expanded:
            each, rest = divmod(len(rows), self.rows)
            if rest:
                raise ValueError(f"adapters: expected a batch of {self.rows} rows, got {len(rows)} tokens")
            self._expanded[place] = [
                (_spread(groups, each, rows), None if weights is None else _spread(weights, each, rows))
                for groups, weights in self._terms
            ]
        return self._expanded[place]


class ArrowChoice:
    """The adapters of each token and layer by Arrow (Ostapenko et al. 2024, arXiv:2405.11157).

    A token h scores an adapter by |h·v|, where v is the input direction that the adapter changes most. The weights are
    the softmax of the scores over the best `top_k`.
    """

    def __init__(self, top_k: int, temperature: float = 1.0) -> None:
        if top_k < 1 or temperature <= 0:
            raise ValueError(f"arrow: expected top_k >= 1 and temperature > 0, got {top_k} and {temperature}")
        self.top_k, self.temperature = top_k, temperature

    def terms(self, rows: Tensor, layer: Adapted) -> list[Term]:
        """Returns the best adapters of each token."""
        scores = (rows @ layer.prototypes.to(rows.dtype).T).float().abs() / self.temperature
        best, adapters = scores.topk(min(self.top_k, scores.shape[1]), dim=1)
        weights = best.softmax(dim=1)
        return [(adapters[:, k].int(), weights[:, k]) for k in range(weights.shape[1])]


def prototype(A: Tensor, B: Tensor) -> Tensor:
    """Returns the (in) top right singular vector of B A: the unit input that the adapter changes most.

    Args:
        A: (R, in).
        B: (out, R).
    """
    # B A = Q (S A) with B = Q S, so its right singular vectors are those of the small matrix S A.
    _, S = torch.linalg.qr(B.double())
    small = S @ A.double()
    vector = torch.linalg.svd(small, full_matrices=False).Vh[0]
    # The sign of a singular vector is arbitrary; scores take the absolute value, and a fixed one is reproducible.
    return (vector * torch.sign(vector[vector.abs().argmax()])).float()


def _as_pairs(choice: RowChoice) -> list[tuple[str, float]]:
    if choice is None:
        return []
    return [(choice, 1.0)] if isinstance(choice, str) else list(choice)


def _spread(values: Tensor, each: int, like: Tensor) -> Tensor:
    return values.repeat_interleave(each).to(like.device)
