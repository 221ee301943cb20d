"""Which examples a model has exactly right, in one forward: where every token of a completion is the likeliest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...lora.base import Base
from ...training.data import collate, encode_record
from ...training.data.records import Record
from ...training.data.template import IGNORED

# Tokens of a forward, about.
_TOKENS = 4096


def rows_of(examples: Sequence[Record], tokenizer: Any) -> list[dict[str, Any]]:
    """Returns examples as rows that `collate` takes."""
    encoded = [encode_record(tokenizer, example) for example in examples]
    return [{"input_ids": each.input_ids, "labels": each.labels} for each in encoded]


@torch.no_grad()
def exact(base: Base, rows: Sequence[dict[str, Any]]) -> list[bool]:
    """Returns for each row whether greedy decoding would give its completion and end there.

    Args:
        base: the model as it is now, with whatever adapter is on.
        rows: of `rows_of`.
    """
    right = [False] * len(rows)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    while order:
        taken = order[-max(1, _TOKENS // len(rows[order[-1]]["input_ids"])) :]
        del order[-len(taken) :]
        batch = collate([rows[place] for place in taken], base.tokenizer.pad_token_id)
        batch = {name: value.to(base.model.device) for name, value in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        best = base.model(**batch, use_cache=False).logits[:, :-1].argmax(-1)
        for place, same in zip(taken, ((best == labels) | (labels == IGNORED)).all(1).tolist(), strict=True):
            right[place] = same
    return right
