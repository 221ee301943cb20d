"""Which examples a model has exactly right, in one forward: where every token of a completion is the likeliest one;
and whether a score of many has fallen, without looking at all of them where it has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


class HeldOut:
    """Examples of which as many are to be right as were before.

    Attributes:
        before: how many were right.
    """

    def __init__(
        self,
        which: Callable[[Sequence[dict[str, Any]]], list[bool]],
        rows: Sequence[dict[str, Any]],
        right: Sequence[bool],
    ) -> None:
        """Takes note of what was right.

        Args:
            which: says which of some rows are right, as the model is when it is asked.
            rows: of `rows_of`.
            right: which of them were right before.
        """
        self._which, self._rows = which, list(rows)
        self.before = sum(right)
        self._wrong = [place for place, was in enumerate(right) if not was]
        # What was lost last is the likeliest to be lost again, and is looked at first.
        self._order = [place for place, was in enumerate(right) if was]

    def right(self) -> tuple[int, bool]:
        """Returns how many are right and True; or, as soon as they must be fewer than before, a bound and False."""
        gained = sum(self._look(self._wrong)) if self._wrong else 0
        order, lost = self._order, []
        for start, stop in _parts(len(order)):
            looked = order[start:stop]
            lost += [place for place, right in zip(looked, self._look(looked), strict=True) if not right]
            if len(lost) > gained:
                break
        gone = set(lost)
        self._order = lost + [place for place in order if place not in gone]
        return self.before + gained - len(lost), len(lost) <= gained

    def _look(self, places: Sequence[int]) -> list[bool]:
        return self._which([self._rows[place] for place in places])


def _parts(count: int) -> list[tuple[int, int]]:
    """Returns where parts begin and end: a small one, then larger ones, which take less time for each row."""
    cuts = sorted({0, min(16, count), min(80, count), count})
    return list(zip(cuts, cuts[1:], strict=False))
