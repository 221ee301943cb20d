"""The batches of a whole run, fixed at its start: records of similar length together, in an order from the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

# Batches whose records are sorted by length together: more would pad less and mix less.
_SORTED_BATCHES = 32


class ScheduledRecords(Dataset):
    """Encoded records in the order of a run: read from first to last, they are its batches.

    Each record comes once before any comes again. A run that goes on at step n reads on at n batches.
    """

    def __init__(self, rows: Any, batch_size: int, batches: int, seed: int) -> None:
        """Fixes the order.

        Args:
            rows: a `datasets.Dataset` with `input_ids` and `labels`.
            batch_size: records in a batch.
            batches: how many the run takes.
            seed: another one gives another order.
        """
        # All at once: row by row takes datasets three times as long.
        columns = rows[:]
        self.rows: list[dict[str, Any]] = [
            {"input_ids": ids, "labels": labels}
            for ids, labels in zip(columns["input_ids"], columns["labels"], strict=True)
        ]
        self.order = run_order([len(row["input_ids"]) for row in self.rows], batch_size, batches, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[self.order[place]]


def run_order(lengths: Sequence[int], batch_size: int, batches: int, seed: int) -> np.ndarray:
    """Returns which record comes at each place of a run.

    Args:
        lengths: tokens of each record.
        batch_size: records in a batch.
        batches: how many the run takes.
        seed: another one gives another order.

    Returns:
        (batches x batch_size) int64.
    """
    rng = np.random.default_rng(seed)
    wanted = batches * batch_size
    passes = -(-wanted // len(lengths))
    order = np.concatenate([rng.permutation(len(lengths)) for _ in range(passes)])[:wanted]
    size = np.asarray(lengths)
    chunks = []
    for start in range(0, wanted, _SORTED_BATCHES * batch_size):
        chunk = order[start : start + _SORTED_BATCHES * batch_size]
        chunk = chunk[np.argsort(size[chunk], kind="stable")].reshape(-1, batch_size)
        chunks.append(rng.permutation(chunk).reshape(-1))
    return np.concatenate(chunks)
