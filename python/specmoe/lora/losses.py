"""The loss of each record on its own, so that systems that choose by record can be put together afterwards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..training.data.prepare import collate
from ..training.data.template import IGNORED


class RecordLosses(NamedTuple):
    """Of each record the summed cross-entropy in nats, and the labelled tokens, (records) float64 and int64."""

    nats: np.ndarray
    tokens: np.ndarray

    @property
    def mean(self) -> float:
        """Nats per labelled token."""
        return float(self.nats.sum() / self.tokens.sum())


@torch.no_grad()
def record_losses(
    model: Any, rows: Any, pad_id: int, chosen: Callable[[list[int]], AbstractContextManager[None]], tokens: int = 8192
) -> RecordLosses:
    """Returns the losses of a model whose adapters may be other ones for each record.

    Args:
        model: a causal language model in evaluation mode.
        rows: a `datasets.Dataset` with `input_ids` and `labels`.
        pad_id: the id that fills shorter rows.
        chosen: called with the places of a batch's records; the forward runs within what it returns.
        tokens: about how many a forward takes.
    """
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    nats, counts = np.zeros(len(order)), np.zeros(len(order), dtype=np.int64)
    while order:
        places = order[-max(1, tokens // lengths[order[-1]]) :]
        del order[-len(places) :]
        batch = {key: value.to(model.device) for key, value in collate([rows[i] for i in places], pad_id).items()}
        labels = batch.pop("labels")[:, 1:]
        with chosen(places):
            logits = model(**batch, use_cache=False).logits[:, :-1]
        losses = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=IGNORED)
        nats[places] = losses.double().sum(1).cpu().numpy()
        counts[places] = (labels != IGNORED).sum(1).cpu().numpy()
    return RecordLosses(nats, counts)
