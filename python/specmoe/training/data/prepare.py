"""Records as a `datasets.Dataset` of token ids, and as batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import DataError
from .records import Record
from .template import IGNORED, encode_record


def encode_records(records: Sequence[Record], tokenizer: Any, max_length: int, min_completion: int = 1) -> Any:
    """Returns the records that fit, encoded.

    A record that is too long is left out and not cut: half an answer teaches the model not to end it.

    Args:
        records: the records.
        tokenizer: a tokenizer of transformers.
        max_length: the most tokens of a record.
        min_completion: the fewest tokens of a completion, its end apart.

    Returns:
        A `datasets.Dataset` with the columns `input_ids`, `labels`, `domain`, and `row`, the place in `records`.

    Raises:
        DataError: no record fits.
    """
    from datasets import Dataset

    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "domain": [], "row": []}
    for row, record in enumerate(records):
        encoded = encode_record(tokenizer, record)
        learned = sum(label != IGNORED for label in encoded.labels) - 1
        if len(encoded.input_ids) > max_length or learned < min_completion:
            continue
        values = (encoded.input_ids, encoded.labels, record.domain, row)
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value)
    if not columns["row"]:
        raise DataError(f"data: expected a record of at most {max_length} tokens, got none among {len(records)}")
    return Dataset.from_dict(columns)


def collate(rows: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """Returns a batch of encoded records, padded at the end.

    Args:
        rows: rows of `encode_records`.
        pad_id: the id that fills shorter rows; it is masked, and its labels are `IGNORED`.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each (rows, longest) int64.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros(len(rows), longest, dtype=torch.int64)
    for place, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[place, :length] = torch.tensor(row["input_ids"])
        labels[place, :length] = torch.tensor(row["labels"])
        mask[place, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
