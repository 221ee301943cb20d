"""Records that show the way out of a loop: a stretch of the answer is said again, and then the answer goes on."""

from __future__ import annotations

import random
from typing import Any

from ..training.data.template import IGNORED
from .objective import AVOIDED

LONGEST_STRETCH, MOST_TIMES = 12, 4


def with_loops(rows: Any, context: int, seed: int) -> Any:
    """Returns encoded records, each followed by a copy in which a stretch of its completion is said again.

    What is said again is to be avoided, and what comes after it is learned: in the very state in which greedy decoding
    would go on repeating, the expert learns not to, and where to go from there. To repeat stretches of real text for
    that is the idea of DITTO (Xu et al. 2022, arXiv:2206.02369).

    Args:
        rows: a `datasets.Dataset` as `encode_records` returns it.
        context: the most tokens of a record; a copy that would be longer is left out.
        seed: of the stretches.

    Returns:
        A `datasets.Dataset` with `input_ids` and `labels`, for `objective.unlikelihood_loss`.
    """
    from datasets import Dataset

    draw = random.Random(f"loops {seed}")
    columns: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
        pairs = [(ids, labels), _looped(ids, labels, draw)]
        for pair in pairs:
            if len(pair[0]) <= context:
                for column, values in zip(columns.values(), pair, strict=True):
                    column.append(values)
    return Dataset.from_dict(columns)


def _looped(ids: list[int], labels: list[int], draw: random.Random) -> tuple[list[int], list[int]]:
    begin = next(place for place, label in enumerate(labels) if label != IGNORED)
    end = draw.randint(begin + 1, len(ids) - 1) if begin + 1 < len(ids) else begin
    length = min(draw.randint(1, LONGEST_STRETCH), end - begin)
    again = ids[end - length : end] * draw.randint(1, MOST_TIMES)
    return ids[:end] + again + ids[end:], labels[:end] + [AVOIDED - token for token in again] + labels[end:]
