"""Several experts that speak as one: their next-token distributions are mixed with the router's weights.

R rows of a batch, E experts, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from ..routing import Route

# An expert with a smaller weight is not asked.
LEAST_WEIGHT = 0.01


def mixing_weights(routes: Sequence[Route], experts: Sequence[str], top: int = 2) -> torch.Tensor:
    """Returns the weights of the likeliest experts of each row.

    Args:
        routes: the router's answers.
        experts: their names, in the order of the columns.
        top: the most experts of a row.

    Returns:
        (R, E) float32; each row sums to 1.
    """
    weights_RE = torch.zeros(len(routes), len(experts))
    for row, route in enumerate(routes):
        for name, weight in route.best(top):
            if weight >= LEAST_WEIGHT:
                weights_RE[row, experts.index(name)] = weight
    return weights_RE / weights_RE.sum(dim=1, keepdim=True)


class MixedStream:
    """Steps the experts of a batch together, each with the rows that it has a weight in and a cache of its own.

    The text of a row has one domain, which the router does not know for certain. So a row's weights follow Bayes'
    rule: each token multiplies an expert's weight by the probability that the expert gave it. Mixed so, the loss of a
    whole answer exceeds that of its right expert by at most -log of the router's weight for it, and not that at each
    token.
    """

    def __init__(self, experts: Sequence[Any], weights_RE: torch.Tensor) -> None:
        """Starts before the first token.

        Args:
            experts: the networks, in the order of the columns.
            weights_RE: the router's weights; rows sum to 1.
        """
        self.log_weights_RE = weights_RE.log()
        self._parts = [
            _Part(column, expert, torch.nonzero(weights_RE[:, column])[:, 0])
            for column, expert in enumerate(experts)
            if weights_RE[:, column].any()
        ]

    @torch.no_grad()
    def step(self, ids_RS: torch.Tensor, mask_RS: torch.Tensor) -> torch.Tensor:
        """Reads tokens and returns what may come next.

        Args:
            ids_RS: (R, new) int64; padding at the beginning.
            mask_RS: (R, all tokens so far) int64, 0 where there is padding.

        Returns:
            (R, V) float32 log-probabilities.
        """
        mixed_RV: torch.Tensor | None = None
        for part in self._parts:
            log_p = part.step(ids_RS, mask_RS) + self.log_weights_RE[part.rows, part.column, None]
            if mixed_RV is None:
                mixed_RV = torch.full((len(ids_RS), log_p.shape[1]), -torch.inf)
            mixed_RV[part.rows] = torch.logaddexp(mixed_RV[part.rows], log_p)
        assert mixed_RV is not None
        return mixed_RV

    def chosen(self, tokens_R: torch.Tensor) -> None:
        """Updates the weights by the tokens that were chosen after the last step."""
        for part in self._parts:
            self.log_weights_RE[part.rows, part.column] += part.log_p[torch.arange(len(part.rows)), tokens_R[part.rows]]
        self.log_weights_RE = self.log_weights_RE.log_softmax(dim=1)

    def keep(self, rows: torch.Tensor) -> None:
        """Goes on with some of the rows, in ascending order."""
        places = torch.full((len(self.log_weights_RE),), -1)
        places[rows] = torch.arange(len(rows))
        self.log_weights_RE = self.log_weights_RE[rows]
        for part in self._parts:
            part.keep(places)
        self._parts = [part for part in self._parts if len(part.rows)]


class _Part:
    """One expert, the rows that it serves, and its cache of them."""

    def __init__(self, column: int, expert: Any, rows: torch.Tensor) -> None:
        self.column, self.expert, self.rows = column, expert, rows
        self.cache = DynamicCache(config=expert.config)
        self.log_p = torch.empty(0)

    def step(self, ids_RS: torch.Tensor, mask_RS: torch.Tensor) -> torch.Tensor:
        ids, mask = ids_RS[self.rows], mask_RS[self.rows]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        logits = self.expert(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        ).logits
        self.log_p = logits[:, -1].float().log_softmax(dim=-1)
        return self.log_p

    def keep(self, places: torch.Tensor) -> None:
        kept = torch.nonzero(places[self.rows] >= 0)[:, 0]
        if len(kept) < len(self.rows):
            self.cache.batch_select_indices(kept)
        self.rows, self.log_p = places[self.rows[kept]], self.log_p[kept]
