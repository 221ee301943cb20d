"""The loss on labelled tokens."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..data.prepare import collate
from ..data.template import IGNORED


@torch.no_grad()
def labelled_loss(model: Any, rows: Any, pad_id: int, tokens: int = 16384) -> float:
    """Returns the mean cross-entropy over every labelled token of a set of records.

    Args:
        model: a causal language model; its mode (training or evaluation) is restored afterwards.
        rows: a `datasets.Dataset` with `input_ids` and `labels`.
        pad_id: the id that fills shorter rows.
        tokens: about how many a forward takes.

    Returns:
        Nats per token.
    """
    pairs = sorted(zip(rows["input_ids"], rows["labels"], strict=True), key=lambda pair: len(pair[0]))
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    while pairs:
        # The last is the longest of its batch.
        taken = pairs[-max(1, tokens // len(pairs[-1][0])) :]
        del pairs[-len(taken) :]
        batch = collate([{"input_ids": ids, "labels": labels} for ids, labels in taken], pad_id)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1]
        learned = labels != IGNORED
        losses = F.cross_entropy(logits[learned].float(), labels[learned], reduction="none")
        total += losses.cpu().double().sum().item()
        count += losses.numel()
    model.train(was_training)
    return total / count
