"""Held-out losses: of each expert in each domain, of the routed experts, and of always choosing the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..training.data import collate
from ..training.data.template import IGNORED


@torch.no_grad()
def token_log_probs(model: Any, rows: Any, pad_id: int, tokens: int = 16384) -> list[np.ndarray]:
    """Returns the log-probability of each labelled token.

    Args:
        model: a causal language model.
        rows: a `datasets.Dataset` with `input_ids` and `labels`.
        pad_id: the id that fills shorter rows.
        tokens: about how many a forward takes.

    Returns:
        For each row (labelled tokens) float64, in nats.
    """
    pairs = list(zip(rows["input_ids"], rows["labels"], strict=True))
    order = sorted(range(len(pairs)), key=lambda row: -len(pairs[row][0]))
    found: list[np.ndarray] = [np.empty(0)] * len(pairs)
    model.eval()
    while order:
        taken = order[: max(1, tokens // len(pairs[order[0]][0]))]
        del order[: len(taken)]
        batch = collate([{"input_ids": pairs[row][0], "labels": pairs[row][1]} for row in taken], pad_id)
        labels = batch.pop("labels")[:, 1:]
        log_p = model(**batch, use_cache=False).logits[:, :-1].float().log_softmax(dim=-1)
        log_p = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].double()
        for place, row in enumerate(taken):
            found[row] = log_p[place][labels[place] != IGNORED].numpy()
    return found


def mean_loss(log_probs: Sequence[np.ndarray]) -> float:
    """Returns nats per token over all rows."""
    return float(-np.concatenate(log_probs).mean())


def mixed_loss(log_probs: Mapping[str, Sequence[np.ndarray]], weights: np.ndarray, update: bool = True) -> float:
    """Returns the loss of mixed experts, nats per token.

    Args:
        log_probs: of each expert, what `token_log_probs` returned, all for the same rows.
        weights: (rows, experts) the router's weights, in the order of `log_probs`; rows sum to 1.
        update: let each token update the weights (see `MixedStream`); False keeps the router's at every token.
    """
    total, count = 0.0, 0
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights)
    for row, prior in enumerate(log_weights):
        table = np.stack([of[row] for of in log_probs.values()])  # (experts, tokens)
        if update:
            total += np.logaddexp.reduce(prior + table.sum(axis=1))
        else:
            total += np.logaddexp.reduce(prior[:, None] + table, axis=0).sum()
        count += table.shape[1]
    return float(-total / count)
